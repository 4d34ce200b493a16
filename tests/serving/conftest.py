"""Channels whose adapter edits, or comes before, what the receiver has read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lcf_lightning import AdapterConfig, AdapterSettings, CacheAdapter, Channel
from lcf_lightning.link import identity_of
from lcf_lightning.models.loading import FrozenModel

Make = Callable[[FrozenModel, str], Channel]
PROMPTS = {"chat": True, "question": "Question: {question}\nGive only the answer, as short as possible.", "stop": "\n"}


@pytest.fixture(scope="session")
def make() -> Make:
    """From a model on both sides and a way to a channel between them, its adapter random."""

    def channel(model: FrozenModel, way: str) -> Channel:
        identity, reread = identity_of(model.spec), {"reread": "question"} if way == "carry" else {}
        settings = AdapterSettings(
            d=16, pooler=None if way == "shared" else way, gate_noise="none", unrotate_keys=way != "shared"
        )
        torch.manual_seed(0)
        config = AdapterConfig(identity, identity, settings, {"prompts": {**PROMPTS, **reread}})
        return Channel(model, model, CacheAdapter(config).requires_grad_(False).eval())

    return channel
