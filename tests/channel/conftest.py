"""A channel of a few training steps between random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.models.geometry import KV
from lcf_lightning.receiving import decoder
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


FACTS = ["likes ada tea .", "owns bob lamp .", "seeks cleo ruby ."]


@pytest.fixture
def trained(spec: Spec, tmp_path: Path) -> Path:
    module = small_module(spec("llama"), spec("qwen3"))
    data = small_data(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=data)
    return tmp_path / "adapter"


@pytest.fixture
def channel(trained: Path) -> Channel:
    return Channel.from_pretrained(trained)


def edited(channel: Channel, messages: list[Message], question: str) -> KV:
    """What some messages make of the receiver's cache."""
    cache = decoder(channel, [messages], [question], [()], 4, {}).cache
    return KV(torch.stack(cache.keys), torch.stack(cache.values))
