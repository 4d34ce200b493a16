"""The package's own errors. The command line turns each into one sentence and an exit code."""

from __future__ import annotations

import re


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def unread(error: BaseException) -> str:
    """Why a file cannot be read: what the system says, without its number and the path, or else the `reason`."""
    return getattr(error, "strerror", None) or reason(error)


_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, which torch says in a RuntimeError."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def first_cause(error: BaseException) -> BaseException:
    """What an error comes from; some libraries say only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def shown(text: str) -> str:
    """A text for a terminal: what would move its cursor or change its colours is spelled out."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


_TRAIN = {"lightning", "torchmetrics", "scipy", "matplotlib", "datasets", "jsonargparse", "rich", "tensorboard"}


def missing_extra(error: ImportError) -> str | None:
    """What to install, if a module is missing that only training and evaluation need."""
    if (error.name or "").partition(".")[0] not in _TRAIN:
        return None
    return f"{error.name} is not installed: data, training and evaluation need pip install 'lcf-lightning[train]'."


class LCFError(Exception):
    """Base of every error this package raises on bad input."""


class SettingError(LCFError, ValueError):
    """A setting has a value that is not allowed; the message names setting, value and what is allowed."""


class ModelError(LCFError, ValueError):
    """A frozen model cannot be found, read or used here."""


class GeometryError(LCFError, ValueError):
    """Two things that must have the same shape do not; the message names what differs."""


class AdapterFileError(LCFError, ValueError):
    """An adapter folder is missing something, holds too much, is damaged, or belongs to another pair."""


class DivergedError(LCFError, RuntimeError):
    """The training loss is no longer finite."""


class DataError(LCFError, ValueError):
    """A data source cannot be found, read or understood."""


class Stopped(LCFError):
    """A signal has ended a fit, whose state is saved.

    Args:
        message: Which signal, and what continues the fit.
        signal: Its number.
        requeued: Whether a cluster will run the same command again.
    """

    def __init__(self, message: str, signal: int, requeued: bool) -> None:
        super().__init__(message)
        self.signal, self.requeued = signal, requeued


class SessionError(LCFError, ValueError):
    """A session's file is damaged, of another adapter or pair, or of a receiver that is held otherwise here."""


class MessageError(LCFError, ValueError):
    """A message is damaged, too large, not authenticated, not finite, or of another adapter or pair."""
