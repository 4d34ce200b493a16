"""Chat templates come with a tokenizer, from anywhere: what they write is bounded in time and in length.

Not bounded is what a single operation takes, such as a power of large numbers.

transformers runs them in a sandbox of Jinja's: they reach nothing outside, but they may loop for ever, write anything,
and fail in any way.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from lcf_lightning.errors import DataError, reason

SECONDS = 10.0
"""For a chat, which takes some thousandths of one."""
_ROOM, _PER_TURN, _PER_CHARACTER = 100_000, 1_000, 4  # characters that a template may write


class _TooLong(BaseException):
    """Raised within a template that has had its time."""


_lock = threading.Lock()
_until: dict[int, float] = {}  # by thread that renders, when it must have ended
_watching = False  # whether the watch runs; none survives a fork


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]]) -> str:
    """A chat as its tokenizer's template writes it, up to where the model answers.

    Raises:
        DataError: If the template fails, takes too long or writes too much.
    """
    try:
        with _watched():
            text = str(
                tokenizer.apply_chat_template(
                    list(map(dict, turns)), tokenize=False, add_generation_prompt=True, enable_thinking=False
                )  # an answer is expected at once, not after a chain of thought
            )
    except _TooLong:
        raise DataError(f"chat=true: the tokenizer's chat template takes more than {SECONDS:g} seconds.") from None
    except Exception as error:  # of a program from anywhere
        raise DataError(f"chat=true: the tokenizer's chat template fails: {reason(error):.300}") from error
    allowed = _ROOM + _PER_TURN * len(turns) + _PER_CHARACTER * sum(len(turn["content"]) for turn in turns)
    if len(text) > allowed:
        raise DataError(f"chat=true: the tokenizer's chat template writes {len(text):,} characters, too many.")
    return text


@contextmanager
def _watched() -> Iterator[None]:
    """Inside, a thread that takes longer than `SECONDS` is interrupted by `_TooLong`, wherever in Python it is."""
    global _watching
    thread = threading.get_ident()
    with _lock:
        if not _watching:
            _watching = True
            threading.Thread(target=_watch, name="chat templates", daemon=True).start()
        _until[thread] = time.monotonic() + SECONDS
    try:
        yield
    finally:
        with _lock:
            _until.pop(thread, None)


def _watch() -> None:
    while True:
        time.sleep(SECONDS / 10)
        with _lock:
            for thread, until in _until.items():
                if time.monotonic() > until:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLong))


def _anew() -> None:
    global _lock, _watching
    _lock, _watching = threading.Lock(), False
    _until.clear()


os.register_at_fork(after_in_child=_anew)
