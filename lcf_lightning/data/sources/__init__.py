"""Data sources, one file a data set."""

from lcf_lightning.data.sources.babi import BAbI
from lcf_lightning.data.sources.chat import Chat
from lcf_lightning.data.sources.hotpotqa import HotpotQA
from lcf_lightning.data.sources.knowledge import Knowledge
from lcf_lightning.data.sources.mismatched import Mismatched
from lcf_lightning.data.sources.mixture import Mixture
from lcf_lightning.data.sources.multiple_choice import MultipleChoice
from lcf_lightning.data.sources.source import RowSource, Source
from lcf_lightning.data.sources.squad import SQuAD
from lcf_lightning.data.sources.world import World

__all__ = [
    "BAbI",
    "Chat",
    "HotpotQA",
    "Knowledge",
    "Mismatched",
    "Mixture",
    "MultipleChoice",
    "RowSource",
    "SQuAD",
    "Source",
    "World",
]
