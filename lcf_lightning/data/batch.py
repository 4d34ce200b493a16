"""`Batch`: everything one training or evaluation step reads, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import Encoded, PromptEncoder, PromptSettings, Tokens, pad_left
from lcf_lightning.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A batch of examples, encoded for both models.

    Attributes:
        examples: The examples themselves.
        sharer: What the sharer reads.
        receiver: What the receiver reads, without the last prompt token.
        last: ``[batch, 1]``, int64: the last prompt token, fed again on the edited cache.
        answers: ``[batch, tokens]``, int64: the first accepted answer and the end of sequence, padded on the right.
        answer_mask: ``[batch, tokens]``, bool, False on padding.
        dropped_spans: Spans that token limits took from this batch.
        mismatched: What the sharer reads in another example; evaluation only.
        full: What a receiver with all passages reads, without the last prompt token; evaluation only.
    """

    examples: tuple[Example, ...]
    sharer: Tokens
    receiver: Tokens
    last: Tensor
    answers: Tensor
    answer_mask: Tensor
    dropped_spans: int
    mismatched: Tokens | None = None
    full: Tokens | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The batch with its tensors moved, as Lightning asks for."""

        def moved(tokens: Tokens | None) -> Tokens | None:
            return None if tokens is None else tokens.to(*args, **kwargs)

        return replace(
            self,
            sharer=self.sharer.to(*args, **kwargs),
            receiver=self.receiver.to(*args, **kwargs),
            last=self.last.to(*args, **kwargs),
            answers=self.answers.to(*args, **kwargs),
            answer_mask=self.answer_mask.to(*args, **kwargs),
            mismatched=moved(self.mismatched),
            full=moved(self.full),
        )


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` of examples, or of ``(example, example with the wrong message)`` pairs.

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
        sharer = [self._sharer(example) for example in examples]
        receiver = [self.receiver.prompt(example.receiver, example.question) for example in examples]
        answers = [self.receiver.answer(example.answers[0]) for example in examples]
        width = max(map(len, answers))
        pad = self.receiver.pad_id
        return Batch(
            examples=tuple(examples),
            sharer=pad_left(sharer, self.sharer.pad_id),
            receiver=pad_left([all_but_last(prompt) for prompt in receiver], pad),
            last=torch.tensor([prompt.ids[-1:] for prompt in receiver]),
            answers=torch.tensor([ids + [pad] * (width - len(ids)) for ids in answers]),
            answer_mask=torch.arange(width) < torch.tensor([len(ids) for ids in answers])[:, None],
            dropped_spans=sum(prompt.dropped for prompt in sharer + receiver),
        )

    def evaluate(self, pairs: Sequence[tuple[Example, Example]]) -> Batch:
        batch = self.train([example for example, _ in pairs])
        mismatched = [self._sharer(partner) for _, partner in pairs]
        settings = self.receiver.settings
        unlimited = replace(self.receiver, settings=replace(settings, max_receiver_tokens=None))
        full = [unlimited.prompt(example.sharer + example.receiver, example.question) for example, _ in pairs]
        return replace(
            batch,
            mismatched=pad_left(mismatched, self.sharer.pad_id),
            full=pad_left([all_but_last(prompt) for prompt in full], self.receiver.pad_id),
        )

    def _sharer(self, example: Example) -> Encoded:
        settings = self.sharer.settings
        prompt = self.sharer.prompt(example.sharer, example.question if settings.share_question else None)
        if max(prompt.spans, default=-1) < 0:
            raise DataError(
                f"max_sharer_tokens={settings.max_sharer_tokens} leaves the sharer of {example.id!r} nothing to "
                "tell; at least one span must fit."
            )
        return prompt


def all_but_last(prompt: Encoded) -> Encoded:
    """What is prefilled of a receiver's prompt; the last token is read on the edited cache."""
    return Encoded(prompt.ids[:-1], prompt.spans[:-1])
