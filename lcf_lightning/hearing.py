"""How messages get into the receiver's cache: each through the adapter that it was sent with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.host import HostCopy, to_device
from lcf_lightning.message import Message
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.geometry import KV
from lcf_lightning.origin import Origin

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel


def heard_by(channel: Channel, origin: Origin) -> Channel:
    """Whose adapter makes messages of that origin heard: this channel, or another of those `Channel.beside` it.

    Raises:
        MessageError: If it is none of them.
    """
    for each in (channel, *channel.others):
        if origin.fits(each.origin):
            return each
    origin.require(channel.origin)
    raise AssertionError(origin)


class Hearing(NamedTuple):
    """The messages to each prompt that one adapter makes heard."""

    channel: Channel
    received: list[list[Message]]


def hearings(channel: Channel, received: Sequence[Sequence[Message]]) -> tuple[list[Hearing], list[Hearing]]:
    """The adapters that have something to say, in the order in which they are used: those that edit what the receiver
    has read, and those that put tokens before it, the first of them last, so that its tokens come first."""
    all_of_them = [
        Hearing(each, [[message for message in several if message.origin.fits(each.origin)] for several in received])
        for each in (channel, *channel.others)
    ]
    heard = [each for each in all_of_them if any(each.received)]
    edits = [each for each in heard if not each.channel.adapter.prepends]
    return edits, [each for each in reversed(heard) if each.channel.adapter.prepends]


def hear(hearings: Sequence[Hearing], cache: KVCache, question: Tokens, start: int, finite: list[HostCopy]) -> KVCache:
    """The receiver's caches, where there is a message edited by one adapter after the other; adds to ``finite``."""
    for channel, received in hearings:
        told = [row for row, several in enumerate(received) if several]
        if len(told) == len(received):
            cache, found = _fused(channel, received, cache, question, start)
        else:
            rows = to_device(torch.tensor(told), cache.mask.device)
            messages = [received[row] for row in told]
            heard, found = _fused(channel, messages, cache.rows(rows), question.rows(rows))
            cache = cache.with_rows(rows, heard)
        finite.append(found)
    return cache


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
