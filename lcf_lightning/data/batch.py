"""`Batch`: everything one training or evaluation step reads, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompts import PromptEncoder, PromptSettings
from lcf_lightning.data.tokens import Encoded, Tokens, pad_left, pad_right, split_last
from lcf_lightning.errors import DataError
from lcf_lightning.models.pairing import Indexes, align, by_position


@dataclass(frozen=True)
class Batch:
    """A batch of examples, encoded for both models.

    Attributes:
        examples: The examples themselves.
        prompts: How they were written, so that an evaluation arm can write them otherwise.
        sharer: What the sharer reads.
        index: What `CacheAdapter.pool` takes of it: where the two read different texts, ``[batch, sharer tokens]``, the
            span of each sharer token (-1 for none); where they read the same, ``[batch, receiver tokens]``, the sharer
            token that each receiver token is aligned with. int64.
        receiver: What the receiver reads, without the last prompt token.
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
        names = ("sharer", "index", "receiver", "last", "answers", "answer_mask")
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
        sharer = [self.sharer_prompt(example.id, example.sharer, example.question) for example in examples]
        receiver = [self.receiver.prompt(example.receiver, example.question) for example in examples]
        tokens = pad_left(sharer, self.sharer.pad_id)
        return self._batch(examples, tokens, tokens.spans, receiver, sum(prompt.dropped for prompt in sharer))

    def evaluate(self, pairs: Sequence[tuple[Example, Example]]) -> Batch:
        """The batch of ``(example, partner)`` pairs."""
        batch = self.train([example for example, _ in pairs])
        return replace(batch, partners=tuple(partner for _, partner in pairs))

    def message_of(
        self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]], receiver: Tokens
    ) -> tuple[Tokens, Tensor]:
        """What the sharer reads, and the batch's ``index``, where other examples' messages go to ``receiver``."""
        prompts = [self.sharer_prompt(example.id, passages(example), example.question) for example in examples]
        tokens = pad_left(prompts, self.sharer.pad_id)
        return tokens, tokens.spans

    def sharer_prompt(self, id: str, passages: Sequence[Passage], question: str) -> Encoded:
        """What the sharer reads before it sends a message.

        Raises:
            DataError: If that holds no span at all.
        """
        settings = self.sharer.settings
        prompt = self.sharer.prompt(passages, question if settings.share_question else None)
        if max(prompt.spans, default=-1) < 0:
            raise DataError(
                f"max_sharer_tokens={settings.max_sharer_tokens} leaves the sharer of {id!r} nothing to "
                "tell; at least one span must fit."
            )
        return prompt

    def _batch(
        self, examples: Sequence[Example], sharer: Tokens, index: Tensor, receiver: Sequence[Encoded], dropped: int
    ) -> Batch:
        read, last = split_last(receiver, self.receiver.pad_id)
        answers, mask = pad_right([self.receiver.answer(row.answers[0]) for row in examples], self.receiver.pad_id)
        return Batch(
            examples=tuple(examples),
            prompts=self.receiver.settings,
            sharer=sharer,
            index=index,
            receiver=read,
            last=last,
            answers=answers,
            answer_mask=mask,
            dropped_spans=dropped + sum(prompt.dropped for prompt in receiver),
        )


@dataclass(frozen=True)
class SharedCollator(Collator):
    """Writes each example once for both models of a pair that reads the same text, and aligns their tokens."""

    def train(self, examples: Sequence[Example]) -> Batch:
        prompts = [_aligned(self, example) for example in examples]
        tokens = pad_left([sharer for sharer, _, _ in prompts], self.sharer.pad_id)
        index = [index[:-1] for _, _, index in prompts]  # the receiver's last token is read on the edited cache
        return self._batch(examples, tokens, _padded(index, tokens), [receiver for _, receiver, _ in prompts], 0)

    def message_of(
        self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]], receiver: Tokens
    ) -> tuple[Tokens, Tensor]:
        # Another example's text has no character in common with the receiver's: only the relative place is left.
        tokens = pad_left([self.sharer.shared_prompt(example)[0] for example in examples], self.sharer.pad_id)
        # As in training the receiver's last token counts, though it is read on the edited cache only.
        lengths = zip(tokens.mask.sum(1).tolist(), receiver.mask.sum(1).tolist(), strict=True)
        return tokens, _padded([by_position(theirs, own + 1)[:-1] for theirs, own in lengths], tokens)

    def fits(self, example: Example) -> bool:
        """Whether both models' prompts of an example keep to their limits."""
        settings = self.sharer.settings
        limits = ((self.sharer, settings.max_sharer_tokens), (self.receiver, settings.max_receiver_tokens))
        return all(limit is None or len(side.shared_prompt(example)[0].ids) <= limit for side, limit in limits)


@lru_cache(maxsize=4_096)
def _aligned(collator: SharedCollator, example: Example) -> tuple[Encoded, Encoded, Indexes]:
    """Both prompts of an example, and the sharer token of every receiver token; kept, for the epochs to come."""
    (sharer, theirs), (receiver, own) = (side.shared_prompt(example) for side in (collator.sharer, collator.receiver))
    return sharer, receiver, align(theirs, own, collator.sharer.settings.alignment)


def _padded(index: Sequence[Indexes], sharer: Tokens) -> Tensor:
    """Alignments of a batch, ``[batch, receiver tokens]``, both sides padded on the left."""
    width = max(map(len, index))
    shifts = (~sharer.mask).sum(1).tolist()
    return torch.from_numpy(
        np.stack([np.pad(row + shift, (width - len(row), 0)) for row, shift in zip(index, shifts, strict=True)])
    )
