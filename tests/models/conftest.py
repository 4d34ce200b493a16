"""A frozen model of each family, and a batch of texts of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lcf_lightning import ModelSpec
from lcf_lightning.models.loading import FrozenModel, load_frozen

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
LENGTHS = (13, 9, 4)  # the longest exceeds Gemma's window of 6; all rows decode past it


@pytest.fixture(params=FAMILIES)
def frozen(request: pytest.FixtureRequest, spec: Callable[[str], ModelSpec]) -> FrozenModel:
    return load_frozen(spec(request.param))


def rows(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 290, (length,), generator=generator) for length in LENGTHS]


def left_padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :], mask[row, width - len(text) :] = text, True
    return ids, mask
