"""A pair of random models whose texts differ, and its test split; a file that needs another overrides these."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from tests.pairs import small_data, small_module


@pytest.fixture
def module(spec: Callable[[str], ModelSpec]) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    module.adapter.eval()
    return module


@pytest.fixture
def batch(spec: Callable[[str], ModelSpec]) -> Batch:
    """The first five examples at once."""
    data = small_data(spec("llama"), spec("qwen3"))
    data.setup("test")
    return next(iter(data.test_dataloader()))


@pytest.fixture
def batches(spec: Callable[[str], ModelSpec]) -> list[Batch]:
    """The first two examples, each by itself."""
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    return list(data.test_dataloader())[:2]
