"""The shape of a model's KV cache, known before any weight is loaded, and the stacked layers themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from torch import Tensor

from lcf_lightning.errors import GeometryError

MAX_SIZE = 2**16
"""Of layers, heads, a head, or the width of an adapter, beyond any model's: what a file says is bounded by it."""


class KV(NamedTuple):
    """Keys and values of several layers, stacked: each ``[layers, batch, kv_heads, tokens, head_dim]``."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Geometry:
    """Layers, KV heads and head size: all the adapter knows of a model.

    Attributes:
        layers: Decoder layers.
        kv_heads: Key/value heads of each layer.
        head_dim: Size of one head.
    """

    layers: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise GeometryError(f"{name}={value!r:.80} must be a whole number between 1 and {MAX_SIZE}.")

    @property
    def width(self) -> int:
        """Elements of one token's keys (or values) in one layer."""
        return self.kv_heads * self.head_dim

    def require_equal(self, other: Geometry, what: str) -> None:
        """Raise a GeometryError naming each field in which ``other`` differs from this geometry."""
        differing = [
            f"{field.name} is {getattr(other, field.name)}, expected {getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if differing:
            raise GeometryError(f"{what}: {'; '.join(differing)}.")


# Public models whose geometry `params` and the adapter need where no network is at hand; checked against the loaded
# model before training.
KNOWN_GEOMETRIES = {
    "Qwen/Qwen2.5-0.5B-Instruct": Geometry(layers=24, kv_heads=2, head_dim=64),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Geometry(layers=24, kv_heads=2, head_dim=64),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": Geometry(layers=28, kv_heads=2, head_dim=128),
    "Qwen/Qwen3-0.6B": Geometry(layers=28, kv_heads=8, head_dim=128),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Geometry(layers=30, kv_heads=3, head_dim=64),
    "google/gemma-3-270m": Geometry(layers=18, kv_heads=1, head_dim=256),
}
