"""What an adapter is before its first step: another's parameters, or what has a closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import SettingError
from lcf_lightning.link import Link, Side
from lcf_lightning.models.geometry import KV

FITTING_TEXTS = 300
FITTING_TOKENS = 20_000
"""Tokens that are enough, whatever the number of texts; both models' caches of them are held in memory."""
_OF_TRAINING = {"dropout", "gate_init", "gate_noise", "zero_init"}


@torch.no_grad()
def fit_pooler(link: Link, batches: Iterable[Batch]) -> None:
    """`Pooler.fit` with what both models cache of some texts: of each of the receiver's tokens that belongs to a span
    or to the question, and of the sharer's token that stands where it stands.

    Args:
        link: The pair and the adapter, which is changed.
        batches: Of texts that both read, see `PairDataModule.read_by_both`; kept prefills are used.
    """
    assert link.adapter.pooler is not None
    one_model = link.sharer is link.receiver
    pairs: list[tuple[KV, KV]] = []
    found = 0
    for batch in batches:
        batch = batch.to(link.receiver.device)
        content = batch.receiver.spans[0] >= 0
        said = _at(link.side("sharer"), batch.sharer, batch.index[0, content])
        pairs.append((said, said if one_model else _at(link.side("receiver"), batch.receiver, content)))
        found += int(content.sum())
        if found >= FITTING_TOKENS:
            break
    link.adapter.pooler.fit(*(_joined(side) for side in zip(*pairs, strict=True)))


def _at(side: Side, tokens: Tokens, places: Tensor) -> KV:
    """Some tokens of one text, ``[layers, 1, heads, places, size]``, keys un-rotated."""
    cache = side.prefill(tokens).read(tuple(range(side.model.geometry.layers)), side.rotary)
    return KV(cache.keys[:, :, :, places], cache.values[:, :, :, places])


def _joined(texts: Sequence[KV]) -> KV:
    """The tokens of several texts, one after the other."""
    return KV(torch.cat([text.keys for text in texts], 3), torch.cat([text.values for text in texts], 3))


def differing_settings(one: AdapterConfig, other: AdapterConfig) -> list[str]:
    """The settings in which two adapters differ."""
    settings, others = asdict(one.settings), asdict(other.settings)
    return [name for name, value in settings.items() if others[name] != value]


def start_from(adapter: CacheAdapter, location: str) -> None:
    """Give an adapter the parameters of another that is built alike; what matters in training alone may differ."""
    given = CacheAdapter.from_pretrained(location)
    differing = [name for name in differing_settings(adapter.config, given.config) if name not in _OF_TRAINING]
    differing += [
        f"geometry of the {role}"
        for role in ("sharer", "receiver")
        if getattr(adapter.config, role).geometry != getattr(given.config, role).geometry
    ]
    if adapter.state_dict().keys() != given.state_dict().keys():  # of carry, where only one pair is one model
        differing.append("parameters")
    if differing:
        raise SettingError(f"init_from={location!r} must be built as this adapter is: {', '.join(differing)} differ.")
    adapter.load_state_dict(given.state_dict())
