"""`Batch`: everything one training or evaluation step reads, as tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.tokens import Encoded, Tokens, Written, extent_of, pad_left, pad_right
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.host import Extent, to_device


@dataclass(frozen=True)
class Batch:
    """A batch of examples, encoded for both models.

    Attributes:
        examples: The examples themselves.
        prompts: How they were written, so that an evaluation arm can write them otherwise.
        sharer: What the sharer reads; where there are several, a row for each, those of an example side by side.
        index: What `Link.pool` takes of it: where the two read different texts, ``[batch, sharer tokens]``, the span of
            each sharer token (-1 for none), several sharers one after the other; where they read the same, ``[batch,
            receiver tokens]``, the sharer token that each receiver token is aligned with. int64.
        receiver: What the receiver reads before a message comes.
        question: What it reads after it (``prompts.reread``), but the last prompt token; else no token.
        last: ``[batch, 1]``, int64: the last prompt token, fed again on the edited cache.
        answers: ``[batch, tokens]``, int64: the first accepted answer and the end of sequence, padded on the right.
        answer_mask: ``[batch, tokens]``, bool, False on padding.
        dropped_spans: Spans that token limits took from this batch.
        partners: For each example the one whose message is the wrong message for it; evaluation only.
        extent: How far ``index`` goes, counted and checked here, so that training need not ask the device; null where
            nobody has.
    """

    examples: tuple[Example, ...]
    prompts: PromptSettings
    sharer: Tokens
    index: Tensor
    receiver: Tokens
    question: Tokens
    last: Tensor
    answers: Tensor
    answer_mask: Tensor
    dropped_spans: int
    partners: tuple[Example, ...] = ()
    extent: Extent | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors moved, as Lightning asks for."""
        return self._each(lambda part: part.to(device) if isinstance(part, Tokens) else to_device(part, device))

    def pin_memory(self) -> Batch:
        """The batch in memory that a CUDA device reads from by itself, as torch's loaders ask for."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        names = ("sharer", "index", "receiver", "question", "last", "answers", "answer_mask")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Collator:
    """Writes examples as prompts of a pair that reads different texts, and makes a `Batch` of them.

    Attributes:
        sharer: Encoder for the sharer.
        receiver: Encoder for the receiver.
    """

    sharer: PromptEncoder
    receiver: PromptEncoder

    def __post_init__(self) -> None:
        reads = self.sharer.settings.sharer_reads
        if reads != "own":
            raise SettingError(f"sharer_reads={reads!r} must be own where the two models read different texts.")
        if (total := self.sharer.settings.max_total_tokens) is not None:
            raise SettingError(f"max_total_tokens={total} must be null where the two models read different texts.")

    @classmethod
    def of(
        cls, settings: PromptSettings, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase
    ) -> Collator:
        """A collator for a pair's tokenizers."""
        return cls(
            PromptEncoder(sharer, settings, "max_sharer_tokens"),
            PromptEncoder(receiver, settings, "max_receiver_tokens"),
        )

    def train(self, examples: Sequence[Example]) -> Batch:
        """A batch of examples, each with as many sharers as its id says."""
        return self.batch(examples, [self.write_for_training(example) for example in examples])

    def train_written(self, rows: Sequence[tuple[Example, Written]]) -> Batch:
        """A batch of examples that were written before."""
        examples, written = zip(*rows, strict=True)
        return self.batch(examples, written)

    def write_for_training(self, example: Example) -> Written:
        """An example as it is trained on: with as many sharers as its id says.

        Raises:
            DataError: If it cannot be written within the limits.
        """
        return self.write(example, random.Random(example.id).randint(1, self.sharer.settings.sharers))

    def evaluate(self, pairs: Sequence[tuple[Example, Example]]) -> Batch:
        """The batch of ``(example, partner)`` pairs, with all sharers."""
        batch = self.collate([example for example, _ in pairs], [self.sharer.settings.sharers] * len(pairs))
        return replace(batch, partners=tuple(partner for _, partner in pairs))

    def sharer_tokens(self, example: Example) -> int:
        """How many tokens the sharer reads of an example, all sharers together.

        One that does not fit the limit has a length all the same: whether it can be read is asked when it is.
        """
        sharers = self.sharer.settings.sharers
        try:
            prompts = self._sharer_prompts(example.id, example.sharer_reads, example.question, sharers)
        except DataError:
            whole = self.sharer.unlimited()
            return len(whole.prompt(example.sharer_reads, example.question).ids)
        return sum(len(prompt.ids) for prompt in prompts)

    def collate(self, examples: Sequence[Example], sharers: Sequence[int]) -> Batch:
        """A batch of examples, each with so many sharers."""
        return self.batch(examples, [self.write(*each) for each in zip(examples, sharers, strict=True)])

    def write(self, example: Example, sharers: int) -> Written:
        """An example as tokens, with so many sharers."""
        return Written(
            self._sharer_prompts(example.id, example.sharer_reads, example.question, sharers),
            self.receiver.prompt(example.receiver_reads, example.question),
            self._answer(example),
        )

    def _answer(self, example: Example) -> list[int]:
        return self.receiver.answer(example.answers[0])

    def fits(self, example: Example, written: Written) -> bool:
        """Whether an example may be trained on; here spans that exceed a limit have been dropped already."""
        return True

    def batch(self, examples: Sequence[Example], written: Sequence[Written]) -> Batch:
        """Examples and what was written of them as tensors."""
        sharer, index, extent = self._sharers(written)
        receiver = [row.receiver for row in written]
        prompt = self.receiver.split(receiver)
        answers, mask = pad_right([row.answer for row in written], self.receiver.pad_id)
        return Batch(
            examples=tuple(examples),
            prompts=self.receiver.settings,
            sharer=sharer,
            index=index,
            receiver=prompt.ahead,
            question=prompt.question,
            last=prompt.last,
            answers=answers,
            answer_mask=mask,
            dropped_spans=sum(prompt.dropped for row in written for prompt in (*row.sharers, row.receiver)),
            extent=extent,
        )

    def _sharers(self, written: Sequence[Written]) -> tuple[Tokens, Tensor, Extent]:
        """What the sharers read, and the batch's ``index`` and ``extent``."""
        groups = [row.sharers for row in written]
        return *self._grouped(groups), extent_of(groups, self.sharer.settings.send_tokens)

    def message_of(
        self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]], to: Sequence[Example]
    ) -> tuple[Tokens, Tensor]:
        """What the sharer reads, and the batch's ``index``, where some examples' messages go to others' receivers.

        Args:
            examples: Whose messages.
            passages: What the sharer reads of each.
            to: The batch's own examples, as many.

        Raises:
            DataError: If a sharer has nothing to tell.
        """
        sharers = self.sharer.settings.sharers
        return self._grouped([self._sharer_prompts(row.id, passages(row), row.question, sharers) for row in examples])

    def _sharer_prompts(self, id: str, passages: Sequence[Passage], question: str, sharers: int) -> list[Encoded]:
        """What each sharer reads before it sends a message.

        Raises:
            DataError: If that holds no span at all.
        """
        settings = self.sharer.settings
        borders = [place * len(passages) // sharers for place in range(sharers + 1)]
        prompts = [
            self.sharer.prompt(passages[start:end], question if settings.share_question else None)
            for start, end in pairwise(borders)
        ]
        if max((span for prompt in prompts for span in prompt.spans), default=-1) < 0:
            raise DataError(
                f"max_sharer_tokens={settings.max_sharer_tokens} leaves the sharer of {id!r} nothing to "
                "tell; at least one span must fit."
            )
        return prompts

    def _grouped(self, groups: Sequence[Sequence[Encoded]]) -> tuple[Tokens, Tensor]:
        """A row for each sharer, and each example's spans, counted over all of its sharers, in one row.

        Every example gets as many rows as the one with most sharers.
        """
        rows = []
        most = max(map(len, groups))
        for group in groups:
            first = 0
            for prompt in (*group, *[Encoded([], [])] * (most - len(group))):
                row = prompt if prompt.ids else Encoded([self.sharer.pad_id], [-1])  # who reads nothing says nothing
                rows.append(Encoded(row.ids, [span if span < 0 else span + first for span in row.spans]))
                first += max(row.spans) + 1
        tokens = pad_left(rows, self.sharer.pad_id, self.sharer.settings.send_tokens)
        return tokens, tokens.spans.reshape(len(groups), -1)
