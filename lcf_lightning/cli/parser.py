"""The parser of every command: a wrong argument gets one sentence, where jsonargparse needs eighty lines."""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter
from difflib import get_close_matches
from typing import Any, NoReturn

import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.cli import LightningArgumentParser

import lcf_lightning.callbacks
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.data.sources import known_sources
from lcf_lightning.discovery import subclasses
from lcf_lightning.errors import SettingError

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description."""


class LCFParser(LightningArgumentParser):
    """A parser that says in one sentence what is wrong."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a SettingError in place of jsonargparse's usage and message."""
        raise SettingError(self._sentence(message)) from ex

    def dump(self, cfg: Namespace, **kwargs: Any) -> str:
        """A config that stands alone, wherever it is saved: it holds what its base says, and names none."""
        if cfg.get("base") is not None:
            cfg = cfg.clone()
            cfg["base"] = None
        return super().dump(cfg, **kwargs)

    def _sentence(self, message: str) -> str:
        flat = " ".join(message.split())
        settings = re.findall(r'Parser key "([\w.]+)"', flat)
        said = r"\S+ is no setting.*?[.?]|[\w.]+(?:=\S+ must be|=\S+ is of a kind| names a class) .*?[.?]"
        inner = re.search(rf"(?:- |: )({said})(?= - |$)", flat)
        if inner:  # of a part, in which this parser has failed before
            where = f"{settings[0]}." if settings else ""
            return where + inner[1].replace(" is no setting; did you mean ", f" is no setting; did you mean {where}")
        within = r"Group '([\w.]+)' does not accept option '|unrecognized arguments: |does not accept option '|Option '"
        unknown = re.search(rf"(?:{within})(?:--)?([\w.+-]+)", flat)
        if unknown:
            key = ".".join(filter(None, unknown.groups()))
            return f"{key} is no setting{self._meant(key)}"
        setting = settings[-1] if settings else "value"
        name = re.search(r"Expected a dot import path string: (\S+)", flat)
        if name:
            return _unknown_class(setting, name[1])
        needed = re.search(r"(?:the following arguments are required:|value needs) ([\w, ]+)", flat)
        if needed:
            return f"{setting} needs {needed[1].strip()}."
        missing = re.search(r"File does not exist: '(.*?)'", flat)
        if missing:
            return f"{setting}={missing[1]!r} is not a file."
        kind = re.search(r"Expected a <class '(\w+)'>. Got value: (\S+)", flat)
        if kind and kind[2] == "None":
            return f"{setting} is not set; give a config (--config FILE), or --{setting} itself."
        if kind:
            return f"{setting}={kind[2]} must be {_KINDS.get(kind[1], kind[1])}."
        why = re.search(r"No module named '[\w.]+'|module '[\w.]+' has no attribute '\w+'", flat)
        if why:
            return f"{setting} names a class that cannot be imported: {why[0]}."
        value = re.search(r"Given value: (\S+)$", flat)
        choices = re.findall(r"'([\w-]+)'", " ".join(re.findall(r"Literal\[(.*?)\]", flat)))
        if value and choices:
            return f"{setting}={value[1]!r} must be one of {', '.join(dict.fromkeys(choices))}."
        return f"{setting}={value[1]} is of a kind that is not allowed here." if value else flat[:300]

    def _meant(self, key: str) -> str:
        """Which setting was meant, where there is one like it."""
        known = {action.dest for action in self._actions}
        known |= {dest for parser in self._parsers() for dest in (action.dest for action in parser._actions)}
        close = get_close_matches(key, known, 1, 0.75)
        if not close:
            last = {name.rpartition(".")[2]: name for name in sorted(known)}
            close = [last[name] for name in get_close_matches(key.rpartition(".")[2], last, 1, 0.75)]
        return f"; did you mean {close[0]}?" if close else "."

    def _parsers(self) -> list[LightningArgumentParser]:
        """Those of the subcommands."""
        choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return [parser for named in choices for parser in named.values() if isinstance(parser, LCFParser)]


def _unknown_class(setting: str, name: str) -> str:
    """That ``name`` is no class that ``setting`` may name, and which are."""
    ours = list(lcf_lightning.callbacks.__all__)
    optimizers = [kind.__name__ for kind in subclasses(torch.optim.Optimizer) if not kind.__name__.startswith("_")]
    known: dict[str, tuple[list[str], list[str], str]] = {  # those to name, those to look for a like one in, the kind
        "source": (known_sources(), known_sources(), "Source"),
        "sources": (known_sources(), known_sources(), "Source"),
        "data": (names := [kind.__name__ for kind in subclasses(PairDataModule)], names, "LightningDataModule"),
        "optimizer": (["AdamW", "SGD"], sorted(set(optimizers)), "torch optimizer"),
        "callbacks": (ours, [*ours, *lightning_callbacks.__all__], "Callback"),
        "logger": (["CSVLogger", "TensorBoardLogger", "WandbLogger"], lightning_loggers.__all__, "Logger"),
        "lr_scheduler": (["CosineAnnealingLR", "OneCycleLR"], dir(torch.optim.lr_scheduler), "learning rate scheduler"),
    }
    key = setting.rpartition(".")[2]
    if key not in known:
        return f"{setting}={name!r} must be the import path of a class."
    named, like, kind = known[key]
    close = get_close_matches(name, like, 1)
    meant = f"; did you mean {close[0]}?" if close else "."
    return f"{setting}={name!r} must be one of {', '.join(named)}, or the import path of a {kind}{meant}"
