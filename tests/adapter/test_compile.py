"""torch.compile sees an adapter as one graph: nothing in it breaks off, in training and afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import RECEIVER, SHARER, random_kv

KINDS: dict[str, dict[str, object]] = {
    "LCF": {"pooler": None},
    "C2C": {"pooler": None, "fuser": "c2c"},
    "span": {"pooler": "span"},
    "prefix": {"pooler": "prefix"},
    "carry": {"pooler": "carry"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_one_graph(kind: str, adapter: Callable[..., CacheAdapter]) -> None:
    module = adapter(gate_noise="none", **KINDS[kind])
    index = torch.tensor([[0, 0, 1, 2], [-1, 0, 0, 1]]).clamp(min=0 if module.pooler is None else -1)
    layers = len(module.config.sharer_layers)
    given = random_kv(layers, SHARER, 2, 4), index, random_kv(5, RECEIVER, 2, 4, seed=1)
    opened = module.gates.open

    def turned(cache: KV, index: torch.Tensor, receiver: KV, temperature: float | None) -> KV:
        message = module.pool(cache, index, Extent(spans=3, tokens=4))
        return module(message, receiver if module.fuser.reads_receiver else None, temperature, opened)

    torch.compiler.reset()
    compiled = torch.compile(turned, fullgraph=True, backend="eager")
    for temperature in (None, 0.5):
        for ours, plain in zip(compiled(*given, temperature), turned(*given, temperature), strict=True):
            torch.testing.assert_close(ours, plain)
