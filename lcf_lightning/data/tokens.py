"""Prompts and answers as token ids, and batches of them as padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lcf_lightning.data.alignment import Indexes
from lcf_lightning.host import Extent, to_device


@dataclass(frozen=True)
class Encoded:
    """One prompt as tokens.

    Attributes:
        ids: Token ids.
        spans: Each token's span, counted from 0; -1 for tokens in none. The question, where there is one, is the last.
        dropped: Spans that a token limit took away.
        begun: How many of the last tokens begin the answer (``prompts.answer_prefix``).
    """

    ids: list[int]
    spans: list[int]
    dropped: int = 0
    begun: int = 0

    @property
    def ahead(self) -> int:
        """How many tokens a receiver can read before a message: all but those that begin the answer, or the last."""
        return len(self.ids) - max(1, self.begun)


@dataclass(frozen=True)
class Written:
    """One example as tokens, for both models.

    Attributes:
        sharers: What each sharer reads before it sends a message.
        receiver: What the receiver reads.
        answer: Token ids of the answer and the end of sequence.
        index: Where both read the same text, the sharer's token of every receiver's; else None.
    """

    sharers: Sequence[Encoded]
    receiver: Encoded
    answer: list[int]
    index: Indexes | None = None

    @property
    def tokens(self) -> int:
        """How many tokens both models read, and write, of it."""
        return sum(len(prompt.ids) for prompt in (*self.sharers, self.receiver)) + len(self.answer)


@dataclass(frozen=True)
class Tokens:
    """Prompts of a batch, padded on the left.

    Attributes:
        ids: ``[batch, tokens]``, int64.
        mask: ``[batch, tokens]``, bool, False on padding.
        spans: ``[batch, tokens]``, int64, -1 for tokens in no span.
        send: Of what a sharer reads, how many of the passages' tokens it sends at most; null for all.
        largest: The largest token id, as `pad_left` has seen it; null where nobody knows, and it must be looked for.
        asking: How many tokens a prompt has from its last span on, at most; likewise, of what is not sent whole.
    """

    ids: Tensor
    mask: Tensor
    spans: Tensor
    send: int | None = None
    largest: int | None = None
    asking: int | None = None

    def to(self, device: torch.device | str) -> Tokens:
        return self._each(lambda tensor: to_device(tensor, device))

    def pin_memory(self) -> Tokens:
        return self._each(Tensor.pin_memory)

    def rows(self, index: Tensor) -> Tokens:
        """Some rows of the batch, ``index`` ``[rows]``, int64."""
        return self._each(lambda tensor: tensor[index])

    def padded_right(self) -> Tokens:
        """The same prompts, padded on the right, as what is read on a cache must be."""
        order = (~self.mask).byte().argsort(dim=1, stable=True)
        return replace(self._each(lambda tensor: tensor.gather(1, order)), largest=None)

    def until(self, tokens: int) -> Tokens:
        """The first so many tokens of each row."""
        return self._each(lambda tensor: tensor[:, :tokens])

    def after(self, tokens: int) -> Tokens:
        """Each row without its first so many tokens."""
        return self._each(lambda tensor: tensor[:, tokens:])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return replace(self, ids=change(self.ids), mask=change(self.mask), spans=change(self.spans))


def pad_left(prompts: Sequence[Encoded], pad_id: int, send: int | None = None) -> Tokens:
    """A batch of prompts, padded on the left; ``send`` as in `Tokens`."""
    width = max(len(prompt.ids) for prompt in prompts)

    def padded(rows: Sequence[list[int]], value: int) -> list[list[int]]:
        return [[value] * (width - len(row)) + row for row in rows]

    ids, spans = padded([prompt.ids for prompt in prompts], pad_id), padded([prompt.spans for prompt in prompts], -1)
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    return Tokens(
        ids=torch.tensor(ids, dtype=torch.long),
        mask=torch.arange(width) >= width - lengths[:, None],
        spans=torch.tensor(spans, dtype=torch.long),
        send=send,
        largest=max(max(row, default=0) for row in ids),
        asking=None if send is None else max(_asking(prompt.spans) for prompt in prompts),
    )


def extent_of(groups: Sequence[Sequence[Encoded]], send: int | None = None) -> Extent:
    """How far the spans of a batch go, counted on the host; of each example what each of its sharers reads."""
    return Extent(
        spans=max(sum(max(row.spans, default=-1) + 1 for row in group) for group in groups),
        tokens=max(sum(_sent(row.spans, send) for row in group) for group in groups),
    )


def _sent(spans: Sequence[int], send: int | None) -> int:
    """How many tokens of a prompt are sent; see `most_attended`."""
    own = [span for span in spans if span >= 0]
    if send is None or not own:
        return len(own)
    last = max(own)
    return min(send, sum(span != last for span in own) or len(own))


def _asking(spans: Sequence[int]) -> int:
    """How many tokens a prompt has from the first of its last span on; 0 where it has no span."""
    last = max(spans, default=-1)
    return 0 if last < 0 else len(spans) - spans.index(last)


def pad_right(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids ``[batch, tokens]``, padded on the right, and the mask that is False on padding."""
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.long)
    return ids, torch.arange(width) < lengths[:, None]


class Prompt(NamedTuple):
    """Prompts of a batch as a receiver reads them.

    Attributes:
        ahead: What is read before a message comes.
        question: What is read after it, but the last token, padded on the right; no token where nothing is.
        last: ``[batch, 1]``, int64: the last token.
    """

    ahead: Tokens
    question: Tokens
    last: Tensor


def split_question(
    prompts: Sequence[Encoded], pad_id: int, reread: str | None, device: torch.device | str = "cpu"
) -> Prompt:
    """Prompts of which a part is read after a message: ``question``, their last span; ``prompt``, all spans.

    What begins an answer always is. One token at least is read ahead, also of a prompt that begins with its question.
    """
    begins = [_begin(row, reread) for row in prompts]
    rows = list(zip(prompts, begins, strict=True))
    ahead = [Encoded(row.ids[:begin], row.spans[:begin]) for row, begin in rows]
    question = [Encoded(row.ids[begin:-1], row.spans[begin:-1]) for row, begin in rows]
    last = to_device(torch.tensor([row.ids[-1:] for row in prompts]), device)
    return Prompt(pad_left(ahead, pad_id).to(device), pad_left(question, pad_id).padded_right().to(device), last)


def _begin(prompt: Encoded, reread: str | None) -> int:
    """Where that part begins."""
    spans = [span for span in prompt.spans if span >= 0]
    if reread is None or not spans:
        return prompt.ahead
    return max(1, prompt.spans.index(max(spans) if reread == "question" else min(spans)))


def split_last(prompts: Sequence[Encoded], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tokens, Tensor]:
    """What is prefilled of some prompts, and their last tokens ``[batch, 1]``, which are read on that cache."""
    whole = [replace(row, begun=0) for row in prompts]
    prompt = split_question(whole, pad_id, reread=None, device=device)
    return prompt.ahead, prompt.last
