"""What a user is told when a command fails or is ended: one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lcf_lightning.errors import DivergedError, LCFError, Stopped, out_of_memory, reason

_LESS_MEMORY = (
    "lower data.batch_size (trainer.accumulate_grad_batches keeps the global batch), data.eval_batch_size, "
    "data.eval_batch_tokens, data.prompts.max_sharer_tokens, max_receiver_tokens, max_answer_tokens or "
    "max_total_tokens, set model.activation_checkpointing, or "
    "hold the models in less: dtype, quantization"
)
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_MONITOR = re.compile(r"conditioned on metric `(\S+)` which is not available.* any of the following: (.*)", re.DOTALL)
_LACKING = re.compile(r"Requirement '(\S+?)' not met")  # Lightning's, of a logger or a plugin
_PEER = re.compile(r"connection (closed|reset)|broken pipe|gloo|nccl|socket", re.IGNORECASE)


goes_on: ContextVar[Callable[[], str]] = ContextVar("goes_on", default=lambda: "the same command begins anew")
"""How the command that runs is gone on with (`Command.again`); a fit says it when it ends, of its own checkpoint."""


@contextmanager
def ended_by_signals(command: str) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process with a sentence and 128 + their number.

    A fit takes over while it trains (`LastCheckpoint`). Lightning by itself would end a command that SIGTERM comes to
    with exit code 0, as if it had done its work. A signal that the caller ignores stays ignored.
    """

    owner, ended = os.getpid(), 0

    def end(number: int, _: FrameType | None) -> NoReturn:
        nonlocal ended
        if os.getpid() != owner:  # a process that this one has forked; it has nothing to say
            os._exit(128 + number)
        said = f"stopped: {signal.Signals(number).name} ended {command} before its end; {goes_on.get()()}.\n"
        os.write(2, said.encode())  # a signal may come while sys.stderr is being written to
        ended = 128 + number
        raise SystemExit(128 + number)

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    taken = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    if threading.current_thread() is not threading.main_thread():  # the only one that may
        taken = []
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except BaseException:
        if ended:  # what was stopped may fail as it cleans up
            raise SystemExit(ended) from None
        raise
    finally:
        for number in taken:
            signal.signal(number, usual[number])


def explain(error: BaseException, again: str) -> tuple[str, int] | None:
    """The sentence and the exit code: 2 for bad input, 1 for a fault; null where only a traceback tells enough.

    After a fault it says what becomes of the work, ``again`` (`Command.again`).

    A stopped fit ends as a shell expects of its signal, or with 0 where its job is queued again.
    """
    known = _known(error)
    if isinstance(known, Stopped):
        return f"stopped: {known}", 0 if known.requeued else 128 + known.signal
    monitor = _MONITOR.search(str(error)) if isinstance(error, RuntimeError) else None
    if monitor:
        close = get_close_matches(monitor[1], re.findall(r"`(\S+?)`", monitor[2]), 1, 0.5)
        meant = f"; did you mean {close[0]}?" if close else "."
        return f"error: monitor={monitor[1]!r} must be one of {monitor[2].replace('`', '').strip()}{meant}", 2
    lacking = _LACKING.search(str(error))
    if lacking:
        return f"error: {lacking[1]} is not installed: pip install '{lacking[1]}'.", 2
    if known is not None:
        return f"error: {known}", 1 if isinstance(known, DivergedError) else 2
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"error: {error}; nothing written before is lost, and {again}.", 1
    if isinstance(error, OSError) and error.errno in _PERMISSION:
        return f"error: {error}", 2
    if out_of_memory(error):
        return f"error: out of memory ({reason(error)}); {_LESS_MEMORY}. Then {again}.", 1
    if isinstance(error, RuntimeError) and dist.is_initialized() and _PEER.search(str(error)):
        lost = f"rank {dist.get_rank()} has lost another rank, whose message, if it left one, says why"
        return f"error: {lost} ({reason(error)}); {again}.", 1
    return None


def _known(error: BaseException | None) -> LCFError | MisconfigurationException | None:
    """The error that says what to change: ours behind one that jsonargparse made of it, or Lightning's."""
    while error is not None and not isinstance(error, LCFError | MisconfigurationException):
        error = error.__cause__
    return error
