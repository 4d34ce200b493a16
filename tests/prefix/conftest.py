"""A channel whose messages become tokens before the receiver's own (pooler=prefix)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lcf_lightning.callbacks import AdapterExport

from lcf_lightning import Channel, LCFModule, Message, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.models.cache import KVCache
from lcf_lightning.receiving import decoder
from tests.pairs import small_data, small_module, small_trainer
from tests.test_many_sharers import EXAMPLES, PROMPTS

Spec = Callable[[str], ModelSpec]


FACTS = ["likes ada tea .", "owns ben lamp .", "seeks cleo ruby ."]


@pytest.fixture(params=["qwen3", "gemma3"])
def trained(request: pytest.FixtureRequest, spec: Spec, tmp_path: Path) -> Path:
    sharer, receiver = spec("llama"), spec(request.param)
    module = small_module(sharer, receiver, pooler="prefix", gate_noise="none", dropout=0.0)
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=small_data(sharer, receiver))
    return tmp_path / "adapter"


@pytest.fixture
def channel(trained: Path) -> Channel:
    return Channel.from_pretrained(trained)


def ready(sharer: ModelSpec, receiver: ModelSpec) -> LCFModule:
    """An adapter that has not learnt, the same each time, and its models."""
    module = small_module(sharer, receiver, pooler="prefix", gate_noise="none", dropout=0.0)
    module.configure_model()
    module.eval()
    return module


def written(channel: Channel, sharers: int = 1, prompts: PromptSettings = PROMPTS) -> Batch:
    """Two examples, of four facts and of two, over so many sharers."""
    return channel.writer.collator(prompts).collate(EXAMPLES, [sharers] * 2)


def fused(channel: Channel, *messages: Message) -> KVCache:
    """The receiver's cache as `Channel.receive` makes it."""
    return decoder(channel, [messages], ["likes ada"], [FACTS[:1]], 4, {}).cache
