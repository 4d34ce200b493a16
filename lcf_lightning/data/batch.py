"""`Batch`: everything one training or evaluation step reads, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompts import Encoded, PromptEncoder, PromptSettings, Tokens, pad_left
from lcf_lightning.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A batch of examples, encoded for both models.

    Attributes:
        examples: The examples themselves.
        prompts: How they were written, so that an evaluation arm can write them otherwise.
        sharer: What the sharer reads.
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
        names = ("sharer", "receiver", "last", "answers", "answer_mask")
        return replace(self, **{name: getattr(self, name).to(*args, **kwargs) for name in names})


@dataclass(frozen=True)
class Collator:
    """Writes examples as prompts of a pair, and makes a `Batch` of them.

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
        answers = [self.receiver.answer(example.answers[0]) for example in examples]
        width = max(map(len, answers))
        pad = self.receiver.pad_id
        read, last = split_last(receiver, pad)
        return Batch(
            examples=tuple(examples),
            prompts=self.receiver.settings,
            sharer=pad_left(sharer, self.sharer.pad_id),
            receiver=read,
            last=last,
            answers=torch.tensor([ids + [pad] * (width - len(ids)) for ids in answers]),
            answer_mask=torch.arange(width) < torch.tensor([len(ids) for ids in answers])[:, None],
            dropped_spans=sum(prompt.dropped for prompt in sharer + receiver),
        )

    def evaluate(self, pairs: Sequence[tuple[Example, Example]]) -> Batch:
        """The batch of ``(example, partner)`` pairs."""
        batch = self.train([example for example, _ in pairs])
        return replace(batch, partners=tuple(partner for _, partner in pairs))

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


def split_last(prompts: Sequence[Encoded], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tokens, Tensor]:
    """What is prefilled of some prompts, and their last tokens ``[batch, 1]``, which are read on that cache."""
    read = [Encoded(prompt.ids[:-1], prompt.spans[:-1]) for prompt in prompts]
    return pad_left(read, pad_id).to(device), torch.tensor([prompt.ids[-1:] for prompt in prompts], device=device)
