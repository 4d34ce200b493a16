"""How messages get into the receiver's cache: each through the adapter that it was sent with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import SettingError
from lcf_lightning.host import HostCopy, to_device
from lcf_lightning.message import Message
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.geometry import KV
from lcf_lightning.origin import Origin

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel


_READ = ("context", "separator", "question", "answer", "answer_prefix", "chat", "reread", "stop", "max_receiver_tokens")


def require_beside(channel: Channel) -> None:
    """Raise a SettingError unless a channel's receiver can hear messages of all its adapters; see `Channel.beside`."""
    channels = (channel, *channel.others)
    for other in channel.others:
        if not isinstance(other, type(channel)):
            raise SettingError(f"beside= takes channels, one after the other, not {type(other).__name__}.")
        if other.others:
            raise SettingError("beside= takes channels of one adapter each; name them all at once.")
        if channel.link.shared or other.link.shared:
            raise SettingError("beside= is for adapters of pairs that read different texts (pooler=null reads one).")
        if other.link.receiver is not channel.link.receiver:
            raise SettingError(
                "beside= needs one receiver for all: load the others with "
                "Channel.from_pretrained(…, receiver=channel.link.receiver)."
            )
        for name in _READ:
            mine, theirs = getattr(channel.prompts, name), getattr(other.prompts, name)
            if mine != theirs:
                raise SettingError(f"beside= needs prompts alike in training: {name} is {mine!r} and {theirs!r}.")
    if len({each.origin.adapter for each in channels}) < len(channels):
        raise SettingError("beside= names an adapter twice.")
    if sum(not each.adapter.prepends for each in channels) > 1:
        raise SettingError(
            "beside= takes one adapter at most that edits what the receiver has read: what a second did would depend "
            "on the first; the others need pooler=prefix or carry."
        )


def heard_by(channel: Channel, origin: Origin) -> Channel:
    """Whose adapter makes messages of that origin heard: this channel, or another of those `Channel.beside` it.

    Raises:
        MessageError: If it is none of them.
    """
    found = next((each for each in channel.others if origin.fits(each.origin)), channel)
    origin.require(found.origin)
    return found


def hear(
    channel: Channel, received: Sequence[Sequence[Message]], cache: KVCache, question: Tokens, start: int = 0
) -> tuple[KVCache, tuple[HostCopy, ...]]:
    """The receiver's caches, each edited by its messages, if there are any.

    An adapter that edits what the receiver has read comes first, then those that put tokens before it, the first of
    them last, so that its tokens come first.

    Args:
        channel: Whose receiver.
        received: The messages to each row.
        cache: Of what it has read.
        question: What it will read next, but the last prompt token.
        start: See `Link.fuse`; of a single row.

    Returns:
        The caches, and of each adapter that was used whether it has left only finite values.
    """
    finite = []
    last_first = [*channel.others[::-1], channel]
    for hearer in sorted(last_first, key=lambda each: each.adapter.prepends):
        mine = [[each for each in several if heard_by(channel, each.origin) is hearer] for several in received]
        told = [row for row, several in enumerate(mine) if several]
        if len(told) == len(mine):
            cache, found = _fused(hearer, mine, cache, question, start)
        elif told:
            rows = to_device(torch.tensor(told), cache.mask.device)
            heard, found = _fused(hearer, [mine[row] for row in told], cache.rows(rows), question.rows(rows))
            cache = cache.with_rows(rows, heard)
        if told:
            finite.append(found)
    return cache, tuple(finite)


def _fused(
    channel: Channel, received: Sequence[Sequence[Message]], cache: KVCache, question: Tokens, start: int = 0
) -> tuple[KVCache, HostCopy]:
    """The receiver's caches, each edited by its messages, of which there is one at least; and whether that is finite.

    What is not is zero in the cache, so that nothing has to wait for the answer before decoding begins: no sampling
    sees it, and `Heard.check` refuses the message before anybody sees what was decoded.
    """
    link = channel.link
    keys, values, present = together(received, channel.adapter.gates.logits)
    message = link.merge(Summaries(KV(keys, values), present))
    edited = link.fuse(cache, message, question=question, opened=channel.opened, start=start)
    layers = channel.adapter.config.receiver_layers
    sides = (edited.keys, edited.values)
    finite = torch.stack([torch.stack([side[layer] for layer in layers]).isfinite().all() for side in sides]).all()
    safe = [tuple(torch.where(finite, torch.stack(side), 0)) for side in sides]
    return replace(edited, keys=safe[0], values=safe[1]), HostCopy(finite)


def together(received: Sequence[Sequence[Message]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The spans of each row's messages, padded on the left with zeros, in the dtype and on the device of ``like``.

    Returns:
        Keys and values, ``[layers, batch, heads, spans, head_dim]``, and ``[batch, spans]``, bool, False on padding.
    """
    counts = [sum(message.spans for message in messages) for messages in received]
    width, device = max(counts), like.device
    present = to_device(torch.arange(width) >= width - torch.tensor(counts)[:, None], device)

    def padded(side: str) -> Tensor:
        rows = [
            torch.cat([to_device(getattr(message, side), device).to(like.dtype) for message in messages], 3)
            for messages in received
        ]
        return torch.cat([pad(row, (0, 0, width - row.shape[3], 0)) for row in rows], 1)

    return padded("keys"), padded("values"), present
