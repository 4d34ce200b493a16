"""Two frozen language models that talk through their KV caches (Latent Cache Flow, arXiv 2605.22863)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcf_lightning.adapter.adapter import CacheAdapter
    from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings
    from lcf_lightning.binding import Inbox
    from lcf_lightning.channel import Channel
    from lcf_lightning.data.datamodule import ContextMismatchDataModule, SharedContextDataModule
    from lcf_lightning.likelihood import Score
    from lcf_lightning.message import Message
    from lcf_lightning.models.decoding import Answer
    from lcf_lightning.models.spec import ModelSpec
    from lcf_lightning.module import LCFModule

_HOMES = {
    "AdapterConfig": "lcf_lightning.adapter.config",
    "AdapterSettings": "lcf_lightning.adapter.config",
    "Answer": "lcf_lightning.models.decoding",
    "CacheAdapter": "lcf_lightning.adapter.adapter",
    "Channel": "lcf_lightning.channel",
    "ContextMismatchDataModule": "lcf_lightning.data.datamodule",
    "Inbox": "lcf_lightning.binding",
    "LCFModule": "lcf_lightning.module",
    "Message": "lcf_lightning.message",
    "ModelSpec": "lcf_lightning.models.spec",
    "Score": "lcf_lightning.likelihood",
    "SharedContextDataModule": "lcf_lightning.data.datamodule",
}

__all__ = [
    "AdapterConfig",
    "AdapterSettings",
    "Answer",
    "CacheAdapter",
    "Channel",
    "ContextMismatchDataModule",
    "Inbox",
    "LCFModule",
    "Message",
    "ModelSpec",
    "Score",
    "SharedContextDataModule",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports what is asked for: torch takes seconds, and the command line must know Ctrl-C before."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
