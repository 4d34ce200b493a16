"""`Prediction`: every example of a batch answered under every arm, with the same prompt, decoding and scoring."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.tokens import pad_right
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.scoring import Scores, score
from lcf_lightning.likelihood import Candidate, score_candidates
from lcf_lightning.link import Link
from lcf_lightning.models.continuation import Continuation
from lcf_lightning.models.decoding import cut, generate

MAX_CHOICES = 2**20


@dataclass(frozen=True)
class Prediction:
    """One arm's answer to one example.

    Attributes:
        id: The example's id.
        arm: The arm.
        needs_sharer: False if the receiver's own passages answer the question.
        prediction: What the receiver said.
        answers: What would have been accepted.
        loss: Cross entropy of the first accepted answer, mean over its tokens, in nats.
        exact_match: 0 or 1; null where the question is open-ended.
        f1: In [0, 1]; null where the question is open-ended.
        listening: Jensen–Shannon divergence between the first token's distributions under this arm and under own
            context, in nats (at most ln 2); null where it is the sharer that answers.
        partner_answers: Where another example's message was read, what would have been accepted for that example;
            nothing where the answer is chosen, since the choices do not hold it.
        partner_needs_sharer: Likewise, whether that example's message can hold its answer at all.
        text: In the T2T arms, what the sharer wrote.
        text_cut: In the T2T arms, whether the budget ended that text; else null.
        benchmark: The example's data set, where several are evaluated together.
        choices: How many choices the answer was chosen from; 0 where it was not chosen.
        example: A digest of the example, which tells it from another of the same id.
        partner: Likewise of the example whose message was read, where it was another's.

    Raises:
        SettingError: If a number is none that an evaluation gives, or nothing would have been accepted.
    """

    id: str
    arm: str
    needs_sharer: bool
    prediction: str
    answers: tuple[str, ...]
    loss: float
    exact_match: float | None
    f1: float | None
    listening: float | None
    partner_answers: tuple[str, ...] = ()
    partner_needs_sharer: bool = True
    text: str = ""
    text_cut: bool | None = None
    benchmark: str = ""
    choices: int = 0
    example: str = ""
    partner: str = ""

    def __post_init__(self) -> None:
        checks = {
            "answers": bool(self.answers),
            "loss": _is_number(self.loss),
            "exact_match": self.exact_match is None or 0 <= self.exact_match <= 1,
            "f1": (self.f1 is None) == (self.exact_match is None) and (self.f1 is None or 0 <= self.f1 <= 1),
            "listening": self.listening is None or (_is_number(self.listening) and not self.listening < 0),
            "choices": 0 <= self.choices <= MAX_CHOICES,
        }
        wrong = next((name for name, holds in checks.items() if not holds), None)
        if wrong is not None:
            raise SettingError(f"answer.{wrong}={getattr(self, wrong)!r:.80} is none that an evaluation gives")


def _is_number(value: float) -> bool:
    """Whether it is one that a model may give, NaN too, and no whole number that no float can hold."""
    return isinstance(value, float) or abs(value) <= 2**53


def digest(example: Example) -> str:
    """What tells an example from any other, whatever its id."""
    return hashlib.blake2b(repr(example).encode(), digest_size=8).hexdigest()


def by_arm(predictions: Iterable[Prediction], needs_sharer: bool) -> dict[str, dict[str, Prediction]]:
    """Those of one kind of question by arm and id; an example that occurs twice (a sampler's padding) counts once."""
    arms: dict[str, dict[str, Prediction]] = {}
    for prediction in predictions:
        if prediction.needs_sharer == needs_sharer:
            arms.setdefault(prediction.arm, {})[prediction.id] = prediction
    return arms


def columns(rows: Iterable[Prediction]) -> tuple[list[float], list[float], list[float]]:
    """Exact match and F1 of those answers that have one, and the loss of all."""
    rows = list(rows)
    exact = [row.exact_match for row in rows if row.exact_match is not None]
    return exact, [row.f1 for row in rows if row.f1 is not None], [row.loss for row in rows]


@torch.no_grad()
def run_arms(caches: ArmCaches, arms: Sequence[str], max_new_tokens: int) -> list[Prediction]:
    """Every example of a batch answered under every arm: same prompt, decoding, stopping and scoring."""
    chosen = [find_arm(name) for name in arms]
    caches.write(max((arm.budget for arm in chosen), default=0))
    readings = ((arm.name, arm.reading(caches)) for arm in chosen)
    return [row for name, reading in readings for row in answer_reading(caches, reading, name, max_new_tokens)]


def answer_reading(caches: ArmCaches, reading: Reading, arm: str, max_new_tokens: int) -> list[Prediction]:
    """Every example of a batch answered from a reading, which is called ``arm``."""
    batch, reading = caches.batch, reading.asked(caches.link)
    encoder = caches.collator.sharer if reading.role == "sharer" else caches.collator.receiver
    ids, mask = batch.answers, batch.answer_mask
    if reading.role == "sharer":  # in its own tokens
        rows = [encoder.answer(example.answers[0]) for example in batch.examples]
        ids, mask = (made.to(reading.last.device) for made in pad_right(rows, encoder.pad_id))
    said = _continuation(caches.link, reading, ids, mask)
    losses = _mean_loss(said, ids, mask).tolist()
    listening = [None] * len(batch)
    if reading.role == "receiver":
        listening = jensen_shannon(said.logits(0, 1)[:, 0].log_softmax(-1), caches.first_tokens).tolist()
    texts = _texts(caches, reading, encoder, max_new_tokens)
    predictions = []
    for row, example in enumerate(batch.examples):
        partner = reading.partners[row] if reading.partners else None
        in_words = not (example.choices or example.open_ended)
        scores = _scores(example, texts[row])
        predictions.append(
            Prediction(
                id=example.id,
                arm=arm,
                needs_sharer=example.needs_sharer,
                prediction=texts[row],
                answers=example.answers,
                loss=losses[row],
                exact_match=None if scores is None else scores.exact_match,
                f1=None if scores is None else scores.f1,
                listening=listening[row],
                partner_answers=partner.answers if partner is not None and in_words else (),
                partner_needs_sharer=partner is None or partner.needs_sharer,
                text=reading.texts[row] if reading.texts else "",
                text_cut=reading.cut[row] if reading.cut else None,
                benchmark=example.benchmark,
                choices=len(example.choices),
                example=digest(example),
                partner="" if partner is None else digest(partner),
            )
        )
    return predictions


def _scores(example: Example, text: str) -> Scores | None:
    if example.open_ended:
        return None
    if example.choices:  # one is right or wrong, with no normalisation
        chosen = float(text == example.answers[0])
        return Scores(chosen, chosen)
    return score(text, example.answers)


def _texts(caches: ArmCaches, reading: Reading, encoder: PromptEncoder, max_new_tokens: int) -> list[str]:
    """What is said or, where there are choices, chosen; nothing where the question is open-ended."""
    examples, said = caches.batch.examples, [""] * len(caches.batch)
    if not all(example.choices or example.open_ended for example in examples):
        ids = generate(caches.link.side(reading.role).model, reading.cache, reading.last, max_new_tokens)
        stop = caches.batch.prompts.stop
        said = [cut(text, stop) for text in caches.writer.texts(ids, reading.role)]
    scores = iter(_choice_scores(caches, reading, encoder))
    return [
        "" if example.open_ended else _best(example, scores) or words
        for example, words in zip(examples, said, strict=True)
    ]


def _best(example: Example, scores: Iterator[float]) -> str:
    """The choice of the highest score, of equals the first; nothing where there are none."""
    return max(((next(scores), -place, choice) for place, choice in enumerate(example.choices)), default=(0, 0, ""))[2]


def _choice_scores(caches: ArmCaches, reading: Reading, encoder: PromptEncoder) -> list[float]:
    """Log probability of every choice of every example, in nats per byte of its text.

    Per byte, so that neither a choice's length nor the tokenizer's cut of it counts against it.
    """
    choices = [(row, choice) for row, example in enumerate(caches.batch.examples) for choice in example.choices]
    candidates = [Candidate(row, encoder.candidate(choice)) for row, choice in choices]
    found = score_candidates(
        caches.link, reading.cache, reading.last, candidates, at_once=len(caches.batch), role=reading.role
    )
    return [each.log_probability / len(choice.encode()) for each, (_, choice) in zip(found, choices, strict=True)]


def answer_losses(link: Link, reading: Reading, batch: Batch) -> Tensor:
    """Cross entropy of each example's answer: ``[batch]``, float32, mean over its tokens, in nats."""
    said = _continuation(link, reading.asked(link), batch.answers, batch.answer_mask)
    return _mean_loss(said, batch.answers, batch.answer_mask)


def _continuation(link: Link, reading: Reading, ids: Tensor, mask: Tensor) -> Continuation:
    return link.continuation(reading.cache, reading.last, ids, mask, reading.role)


def _mean_loss(said: Continuation, ids: Tensor, mask: Tensor) -> Tensor:
    return (said.likelihood(ids).losses * mask).sum(-1) / mask.sum(-1)


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Jensen–Shannon divergence of log probabilities ``[batch, vocabulary]``: ``[batch]``, in nats, in [0, ln 2]."""
    middle = torch.logaddexp(one, other) - math.log(2)
    parts = [F.kl_div(middle, side, reduction="none", log_target=True).sum(-1) for side in (one, other)]
    return ((parts[0] + parts[1]) / 2).clamp(min=0)
