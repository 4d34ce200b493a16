"""Data sources, one file a data set."""

from lcf_lightning.data.sources.babi import BAbI
from lcf_lightning.data.sources.hotpotqa import HotpotQA
from lcf_lightning.data.sources.source import RowSource, Source
from lcf_lightning.data.sources.squad import SQuAD
from lcf_lightning.data.sources.world import World

__all__ = ["BAbI", "HotpotQA", "RowSource", "SQuAD", "Source", "World"]
