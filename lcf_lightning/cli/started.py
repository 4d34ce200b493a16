"""Processes that a command has started, which are told when it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from subprocess import Popen
from typing import Any

_ENDS = (signal.SIGINT, signal.SIGTERM)


def tell_of_signals(processes: Sequence[Popen[Any]]) -> None:
    """From now on processes get SIGTERM when this one gets it or Ctrl-C, also while it waits for what they say.

    That wait is none of Python's, whose own handlers run when it is over: here a thread reads what has come.
    """
    if not processes or threading.current_thread() is not threading.main_thread():  # the only one that gets signals
        return
    came, comes = os.pipe()
    os.set_blocking(comes, False)
    signal.set_wakeup_fd(comes, warn_on_full_buffer=False)
    threading.Thread(target=_tell, args=(came, list(processes)), daemon=True).start()


def _tell(came: int, processes: Sequence[Popen[Any]]) -> None:
    while True:
        if any(number in _ENDS for number in os.read(came, 64)):
            for process in processes:
                process.terminate()
