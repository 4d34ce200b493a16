"""A channel as a model of EleutherAI's lm-evaluation-harness, so that its tasks run with and without messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from lcf_lightning.channel import Channel
from lcf_lightning.data.parsing import Question, Text
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.message import Message

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError(f"lm_eval is needed here ({error}): pip install 'lcf-lightning[lm-eval]'") from error

Source = Callable[[dict[str, Any]], tuple[Text, Question | None]]
"""From a task's row to what the sharer reads, and the question that it is shown, or None."""
MESSAGES = ("own", "none")


@dataclass(frozen=True)
class Fields:
    """A source that takes both from fields of the row.

    Attributes:
        sharer_reads: The field with what the sharer reads: a text, or a list of passages.
        question: The field with the question that it is shown; empty where it was shown none in training.
    """

    sharer_reads: str
    question: str = ""

    def __call__(self, row: dict[str, Any]) -> tuple[Text, Question | None]:
        for name in ("sharer_reads", "question"):
            field = getattr(self, name)
            if field and field not in row:
                raise DataError(f"{name}={field!r} must be a field of the task's rows: {', '.join(map(str, row))}.")
        return row[self.sharer_reads], row[self.question] if self.question else None


@register_model("lcf")
class HarnessModel(LM):  # type: ignore[misc]
    """The receiver answers lm-evaluation-harness' requests, with or without a message for each.

    Its prompt is the harness's context string and nothing else, in the tokenizer's chat template where the adapter was
    trained with it. Where both models read the same text the sharer reads that string too. Where they read different
    ones it reads what the task's row holds for it, written as in training.

    Args:
        adapter: An adapter folder, or ``owner/name`` on the hub; or a channel.
        messages: ``own``: each question with its own message. ``none``, or None, which the harness makes of it: the
            receiver alone. From Python also a function from the task's row to what the sharer reads, and the question
            it is shown or None.
        sharer_reads: With ``own``, where the two read different texts: the field of the row that the sharer reads.
        question: Likewise, the field with the question that it is shown, if it was in training. With ``none`` neither
            is read.
        batch_size: Prompts that are read at once, at least 1.
        device: Where the models of an adapter folder go; the CPU where there is no CUDA, which the harness's command
            line asks for by default.
        revision: Branch, tag or commit of an adapter on the hub.

    Raises:
        SettingError: If a setting is not allowed, or does not fit this kind of adapter.
        AdapterFileError: If the folder is not a whole adapter.
        ModelError: If a model cannot be read, or has other weights than the adapter was made for.
        GeometryError: If a model is not the one the adapter was made for.
    """

    def __init__(
        self,
        adapter: Channel | str | Path,
        messages: str | Source | None = "own",
        sharer_reads: str = "",
        question: str = "",
        batch_size: int | str = 8,
        device: str = "cpu",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        messages = "none" if messages is None else messages
        if not callable(messages) and messages not in MESSAGES:
            raise SettingError(f"messages={messages!r} must be own or none, or from Python a function of the row.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise SettingError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
        if not isinstance(adapter, Channel):
            sides: Literal["receiver", "both"] = "receiver" if messages == "none" else "both"
            device = "cpu" if device.startswith("cuda") and not torch.cuda.is_available() else device
            adapter = Channel.from_pretrained(adapter, device, revision, sides)
        self.batch_size = int(batch_size)
        self.sharer, self.receiver = adapter, _verbatim(adapter)
        self.tells = messages != "none"
        if self.tells:
            _require_fields(adapter, messages, sharer_reads, question)
        fields = Fields(sharer_reads, question) if sharer_reads else None
        self.source = messages if callable(messages) else fields

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """For each continuation its log probability, in nats, and whether greedy decoding would begin with it."""
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        prompts: dict[tuple[int, str], list[int]] = {}  # each once, with all its continuations
        for place, request in enumerate(requests):
            prompts.setdefault((id(request.doc), request.args[0]), []).append(place)
        for places in _batches(sorted(prompts.values(), key=lambda at: len(requests[at[0]].args[0])), self.batch_size):
            firsts = [requests[of_prompt[0]] for of_prompt in places]
            candidates = [[requests[place].args[1] for place in of_prompt] for of_prompt in places]
            contexts = [request.args[0] for request in firsts]
            scores = self.receiver.score_batch(self._messages(firsts), contexts, candidates)
            for of_prompt, of_candidates in zip(places, scores, strict=True):
                for place, score in zip(of_prompt, of_candidates, strict=True):
                    found[place] = (score.log_probability, score.greedy)
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Each answer up to the first of its ``until`` strings, without the blanks around it; greedy by default."""
        found = [""] * len(requests)
        alike: dict[str, list[int]] = {}  # what is decoded alike, together
        for place, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(place)
        for places in alike.values():
            options = normalize_gen_kwargs(requests[places[0]].args[1])
            until = [text for text in options.pop("until") if text]
            if not options["do_sample"]:
                options.pop("temperature", None)
            options["max_new_tokens"] = options.pop("max_gen_toks")
            for batch in _batches(sorted(places, key=lambda at: len(requests[at].args[0])), self.batch_size):
                asked = [requests[place] for place in batch]
                contexts = [request.args[0] for request in asked]
                stops = [_Until(self.receiver.link.receiver.tokenizer, until)]
                answers = self.receiver.receive_batch(
                    self._messages(asked), contexts, stopping_criteria=stops, **options
                )
                for place, answer in zip(batch, answers, strict=True):
                    ends = [answer.text.find(text) for text in until if text in answer.text]
                    found[place] = answer.text[: min(ends, default=None)].strip()
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise SettingError(
            "loglikelihood_rolling: nothing is asked there, so there is nothing that a message could help with; "
            "take a task of output_type loglikelihood, multiple_choice or generate_until."
        )

    def set_cache_hook(self, cache_hook: Any) -> None:
        raise SettingError(
            "use_cache must be left out: lm-evaluation-harness keeps results by context and continuation alone, and "
            "here they depend on the message too."
        )

    @property
    def tokenizer_name(self) -> str:
        raise SettingError(
            "apply_chat_template must be left out: an adapter that was trained with chat=true gets the tokenizer's "
            "template here already, and another was trained without."
        )

    def _messages(self, requests: Sequence[Instance]) -> Sequence[Message | None]:
        """The message that goes with each request."""
        if not self.tells:
            return [None] * len(requests)
        if self.source is None:
            return self.receiver.send_batch([()] * len(requests), [request.args[0] for request in requests])
        texts, questions = zip(*(self.source(request.doc) for request in requests), strict=True)
        messages = self.sharer.send_batch(texts, questions)
        return [replace(message, prompt=None) for message in messages]  # a task words its question as it likes


def main() -> None:
    """The command line of lm-evaluation-harness, with ``--model lcf`` known whatever its version."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def _verbatim(channel: Channel) -> Channel:
    """The channel, with prompts that are the question as it stands and nothing around it."""
    plain = copy(channel)
    plain.prompts = replace(
        channel.prompts,
        context="{passages}",
        question="{question}",
        answer="{answer}",
        max_receiver_tokens=None,
        stop=None,  # a task says itself what ends an answer
    )
    return plain


def _require_fields(channel: Channel, messages: str | Source, sharer_reads: str, question: str) -> None:
    """Refuse the lack of a field that is needed, and one that would not be read."""
    if callable(messages) and channel.link.shared:
        raise SettingError("messages must be own or none, no function: both models read the harness's context string.")
    by_field = messages == "own" and not channel.link.shared
    if by_field and not sharer_reads:
        raise SettingError("sharer_reads='' must name a field of the task's rows: what the sharer reads.")
    if by_field and channel.takes_question and not question:
        raise SettingError("question='' must name a field of the task's rows: the sharer was shown one in training.")
    why = "messages says it" if callable(messages) else "both models read the harness's context string"
    if sharer_reads and not by_field:
        raise SettingError(f"sharer_reads={sharer_reads!r} must be left out: {why}.")
    if question and not (by_field and channel.takes_question):
        why = "the sharer was shown no question in training" if by_field else why
        raise SettingError(f"question={question!r} must be left out: {why}.")


class _Until(StoppingCriteria):
    """Ends a row once what has been generated holds one of some texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str]) -> None:
        self.tokenizer, self.until, self.start = tokenizer, until, -1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.start < 0:  # the first token has been generated: all before it is the prompt
            self.start = input_ids.shape[1] - 1
        texts: list[str] = self.tokenizer.batch_decode(input_ids[:, self.start :])
        return torch.tensor([any(end in text for end in self.until) for text in texts], device=input_ids.device)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``items`` in parts of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
