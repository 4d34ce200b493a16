"""A pair of geometries that differ in everything, and caches of their shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings, ModelIdentity
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.models.geometry import KV, Geometry

SHARER, RECEIVER = Geometry(layers=3, kv_heads=2, head_dim=8), Geometry(layers=5, kv_heads=3, head_dim=4)


@pytest.fixture
def config() -> Callable[..., AdapterConfig]:
    """From settings to the config of the pair."""
    return lambda **settings: AdapterConfig(
        ModelIdentity("a/sharer", "main", SHARER), ModelIdentity("b/receiver", None, RECEIVER),
        AdapterSettings(**{"d": 16, **settings}),
    )  # fmt: skip


@pytest.fixture
def adapter(config: Callable[..., AdapterConfig]) -> Callable[..., CacheAdapter]:
    """From settings to an adapter with fixed random weights."""

    def build(**settings: object) -> CacheAdapter:
        torch.manual_seed(0)
        return CacheAdapter(config(**settings)).eval()

    return build


def random_kv(layers: int, geometry: Geometry, batch: int, tokens: int, seed: int = 0) -> KV:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, batch, geometry.kv_heads, tokens, geometry.head_dim)
    return KV(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


def random_summaries(layers: int, geometry: Geometry, batch: int, parts: int, seed: int = 0) -> Summaries:
    return Summaries(random_kv(layers, geometry, batch, parts, seed), torch.ones(batch, parts, dtype=torch.bool))
