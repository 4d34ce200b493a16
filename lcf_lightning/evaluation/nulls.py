"""What a rate would be if nothing had been said: the rates that stand beside those of the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.scoring import normalised
from lcf_lightning.evaluation.statistics import Estimate, rate

PERMUTATIONS = 2_000


class Guess(TypedDict):
    """What one reaches who has read nothing.

    Attributes:
        answer: The answer that most of the examples accept.
        majority: How often it is right. It was looked up on these examples, so no real guess is better.
        different: How many different first answers there are.
        chance: Exact match of a choice at random; null unless all examples have choices.
    """

    answer: str
    majority: Estimate
    different: int
    chance: float | None


class Follow(TypedDict):
    """How often a receiver gives the answer of the example whose message it was sent by mistake.

    Counted over the examples whose own answer is another, and whose partner's message can hold an answer (its question
    needs the sharer).

    Attributes:
        rate: Under that message.
        own_context: How often it gives that answer under its own context alone; null where that arm was not run.
        permuted: The same under that message where the answers are another partner's, dealt at random within the
            benchmark: mean, and the range of 95 % of the deals. Here too an example counts only where these are not its
            own answer.
        p: How rarely a deal reaches ``rate``.
        n: How many examples were counted.
    """

    rate: Estimate
    own_context: Estimate | None
    permuted: Estimate
    p: float
    n: int


def guess(answers: Sequence[Prediction]) -> Guess | None:
    """The best constant answer and chance, from one arm's answers; None where they are open-ended."""
    if not answers or any(answer.exact_match is None for answer in answers):
        return None
    accepted = [{normalised(text) for text in answer.answers} for answer in answers]
    (most, _), *_ = Counter(text for texts in accepted for text in sorted(texts)).most_common(1)
    chosen = all(answer.choices for answer in answers)
    return Guess(
        answer=most,
        majority=rate([float(most in texts) for texts in accepted]),
        different=len({normalised(answer.answers[0]) for answer in answers}),
        chance=fmean(1 / answer.choices for answer in answers) if chosen else None,
    )


def follow(mismatched: Mapping[str, Prediction], own_context: Mapping[str, Prediction]) -> Follow | None:
    """The follow rate of the answers under another example's message; None where there is nothing to count."""
    ids = [id for id, answer in mismatched.items() if _can_be_followed(answer)]
    if not ids:
        return None
    rows = [mismatched[id] for id in ids]
    followed = [_says(row.prediction, row.partner_answers) for row in rows]
    alone = [_says(own_context[id].prediction, mismatched[id].partner_answers) for id in ids if id in own_context]
    dealt = _dealt(rows)
    low, high = np.percentile(dealt, [2.5, 97.5])
    found = rate(followed)
    return Follow(
        rate=found,
        own_context=rate(alone) if alone else None,
        permuted=Estimate(value=float(dealt.mean()), low=float(low), high=float(high)),
        p=float((1 + (dealt >= found["value"] - 1e-12).sum()) / (1 + len(dealt))),
        n=len(ids),
    )


def _can_be_followed(answer: Prediction) -> bool:
    """Whether the partner's message can hold an answer, and none of them is the example's own."""
    own = {normalised(text) for text in answer.answers}
    apart = not own & {normalised(text) for text in answer.partner_answers}
    return bool(answer.partner_answers) and answer.partner_needs_sharer and apart


def _says(prediction: str, answers: Sequence[str]) -> float:
    return float(normalised(prediction) in {normalised(text) for text in answers})


def _dealt(rows: Sequence[Prediction]) -> NDArray[np.float64]:
    """The follow rate of each of many deals of the partners' answers, within each benchmark."""
    said = {text: place for place, text in enumerate({normalised(row.prediction) for row in rows})}
    partners = {answers: place for place, answers in enumerate({row.partner_answers for row in rows})}
    owned = {answers: place for place, answers in enumerate({row.answers for row in rows})}
    says = np.zeros((len(said), len(partners)), dtype=bool)  # whether a prediction is among a partner's answers
    meets = np.zeros((len(owned), len(partners)), dtype=bool)  # whether own answers and a partner's share one
    for answers, place in partners.items():
        texts = {normalised(text) for text in answers}
        says[[said[text] for text in texts if text in said], place] = True
        meets[[at for own, at in owned.items() if texts & {normalised(text) for text in own}], place] = True
    own = np.array([owned[row.answers] for row in rows])
    prediction = np.array([said[normalised(row.prediction)] for row in rows])
    partner = np.array([partners[row.partner_answers] for row in rows])
    benchmarks = np.array([row.benchmark for row in rows])
    groups = [np.flatnonzero(benchmarks == name) for name in np.unique(benchmarks)]
    rng, rates = np.random.default_rng(0), []
    for _ in range(PERMUTATIONS):
        deal = partner.copy()
        for group in groups:
            deal[group] = rng.permutation(deal[group])
        counted = ~meets[own, deal]
        rates.append(says[prediction, deal][counted].mean() if counted.any() else 0.0)
    return np.array(rates)
