"""Two frozen language models that talk through their KV caches (Latent Cache Flow, arXiv 2605.22863)."""

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings
from lcf_lightning.channel import Channel
from lcf_lightning.data.datamodule import ContextMismatchDataModule, SharedContextDataModule
from lcf_lightning.likelihood import Score
from lcf_lightning.message import Message
from lcf_lightning.models.decoding import Answer
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.module import LCFModule

__all__ = [
    "AdapterConfig",
    "AdapterSettings",
    "Answer",
    "CacheAdapter",
    "Channel",
    "ContextMismatchDataModule",
    "LCFModule",
    "Message",
    "ModelSpec",
    "Score",
    "SharedContextDataModule",
]
