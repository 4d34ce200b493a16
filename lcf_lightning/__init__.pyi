# What the package offers, each name once: `__init__.py` reads this list as it runs, and type checkers read it too.
from lcf_lightning.adapter.adapter import CacheAdapter as CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig as AdapterConfig
from lcf_lightning.adapter.config import AdapterSettings as AdapterSettings
from lcf_lightning.binding import Inbox as Inbox
from lcf_lightning.channel import Channel as Channel
from lcf_lightning.data.datamodule import ContextMismatchDataModule as ContextMismatchDataModule
from lcf_lightning.data.datamodule import SharedContextDataModule as SharedContextDataModule
from lcf_lightning.data.prompt_settings import PromptSettings as PromptSettings
from lcf_lightning.errors import LCFError as LCFError
from lcf_lightning.errors import MessageError as MessageError
from lcf_lightning.likelihood import Score as Score
from lcf_lightning.message import Message as Message
from lcf_lightning.models.decoding import Answer as Answer
from lcf_lightning.models.spec import ModelSpec as ModelSpec
from lcf_lightning.module import LCFModule as LCFModule
from lcf_lightning.session import Session as Session
