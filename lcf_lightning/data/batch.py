"""`Batch`: everything one training or evaluation step reads, as tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.alignment import Indexes, align, align_places
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.tokens import Encoded, Tokens, pad_left, pad_right
from lcf_lightning.errors import DataError, SettingError


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

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The batch with its tensors moved, as Lightning asks for."""
        names = ("sharer", "index", "receiver", "question", "last", "answers", "answer_mask")
        return replace(self, **{name: getattr(self, name).to(*args, **kwargs) for name in names})


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
        most = self.sharer.settings.sharers
        return self.collate(examples, [random.Random(example.id).randint(1, most) for example in examples])

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
        groups = [
            self._sharer_prompts(row.id, row.sharer_reads, row.question, count)
            for row, count in zip(examples, sharers, strict=True)
        ]
        receiver = [self.receiver.prompt(example.receiver_reads, example.question) for example in examples]
        tokens, index = self._grouped(groups)
        return self._batch(
            examples, tokens, index, receiver, sum(prompt.dropped for group in groups for prompt in group)
        )

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

    def _batch(
        self, examples: Sequence[Example], sharer: Tokens, index: Tensor, receiver: Sequence[Encoded], dropped: int
    ) -> Batch:
        prompt = self.receiver.split(receiver)
        answers, mask = pad_right([self.receiver.answer(row.answers[0]) for row in examples], self.receiver.pad_id)
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
            dropped_spans=dropped + sum(prompt.dropped for prompt in receiver),
        )


@dataclass(frozen=True)
class SharedCollator(Collator):
    """Writes each example once for both models of a pair that reads the same text, and aligns their tokens.

    Attributes:
        keeps: Whether prompts and alignments are kept, for the epochs to come.
    """

    keeps: bool = False

    def __post_init__(self) -> None:
        if self.sharer.settings.sharers != 1:
            raise SettingError(
                f"sharers={self.sharer.settings.sharers} must be 1 where both models read the same text."
            )
        for name in ("reread", "send_tokens"):
            value = getattr(self.sharer.settings, name)
            if value is not None:
                raise SettingError(f"{name}={value!r} must be null where both models read the same text.")
        if self.reader is self.receiver:
            _require_one_vocabulary(self.sharer.tokenizer, self.receiver.tokenizer)

    @property
    def reader(self) -> PromptEncoder:
        """What writes the sharer's prompts: its own encoder, or the receiver's (``prompts.sharer_reads``)."""
        return self.sharer if self.sharer.settings.sharer_reads == "own" else self.receiver

    def collate(self, examples: Sequence[Example], sharers: Sequence[int]) -> Batch:
        align = _kept if self.keeps else _aligned
        prompts = [align(self, example) for example in examples]
        tokens = pad_left([sharer for sharer, _, _ in prompts], self.reader.pad_id)
        index = [index[: receiver.ahead] for _, receiver, index in prompts]  # the rest is read on the edited cache
        return self._batch(examples, tokens, _padded(index, tokens), [receiver for _, receiver, _ in prompts], 0)

    def sharer_tokens(self, example: Example) -> int:
        return len(self.reader.shared_prompt(example)[0].ids)

    def form(self, example: Example) -> tuple[int, ...]:
        """How many choices, earlier turns, and lines of each content an example has.

        Of two examples of one form a message keeps its lines: see `align_places`.
        """
        lines = [content.count("\n") for content in self.reader.contents(example)]
        return len(example.choices), len(example.history), *lines

    def message_of(
        self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]], to: Sequence[Example]
    ) -> tuple[Tokens, Tensor]:
        # Another example's text has no character in common with the receiver's: only the place is left.
        prompts, index = [], []
        for example, own in zip(examples, to, strict=True):
            prompt, said = self.reader.shared_prompt(example)
            receiver, read = self.receiver.shared_prompt(own)
            places = align_places(said, self.reader.contents(example), read, self.receiver.contents(own))
            prompts.append(prompt)
            index.append(places[: receiver.ahead])  # as in training, the rest counts, though it is not edited
        tokens = pad_left(prompts, self.reader.pad_id)
        return tokens, _padded(index, tokens)

    def fits(self, example: Example) -> bool:
        """Whether both models' prompts of an example, alone and with its answer, keep to their limits."""
        settings = self.sharer.settings
        limits = ((self.reader, settings.max_sharer_tokens), (self.receiver, settings.max_receiver_tokens))
        return all(side.fits(example, limit) for side, limit in limits)


def _aligned(collator: SharedCollator, example: Example) -> tuple[Encoded, Encoded, Indexes]:
    """Both prompts of an example, and the sharer token of every receiver token."""
    sharer, sharer_layout = collator.reader.shared_prompt(example)
    receiver, receiver_layout = collator.receiver.shared_prompt(example)
    return sharer, receiver, align(sharer_layout, receiver_layout, collator.sharer.settings.alignment)


@lru_cache(maxsize=4)  # a collator is made for each batch of an evaluation and each message, and these are large
def _require_one_vocabulary(sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> None:
    """Raise a SettingError unless every id that both tokenizers know is one token. Either may know more."""
    known = {id: token for token, id in sharer.get_vocab().items()}
    for token, id in receiver.get_vocab().items():
        if known.get(id, token) != token:
            raise SettingError(
                f"sharer_reads='receiver_tokens' must be own: token {id} of the receiver is {token!r}, of the sharer "
                f"{known[id]!r}."
            )


_kept = lru_cache(maxsize=4_096)(_aligned)


def _padded(index: Sequence[Indexes], sharer: Tokens) -> Tensor:
    """Alignments of a batch, ``[batch, receiver tokens]``, both sides padded on the left."""
    width = max(map(len, index))
    shifts = (~sharer.mask).sum(1).tolist()
    return torch.from_numpy(
        np.stack([np.pad(row + shift, (width - len(row), 0)) for row, shift in zip(index, shifts, strict=True)])
    )
