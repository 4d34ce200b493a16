"""``lcf-lightning``, and ``python -m lcf_lightning``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from lcf_lightning.errors import missing_extra


def main() -> None:
    """The command line. Its imports take seconds, and Ctrl-C ends these too without a traceback."""
    if not getattr(sys.flags, "safe_path", False) and not {"", os.getcwd()}.intersection(sys.path):
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a config may name classes of the user's own files
    waiting = signal.getsignal(signal.SIGINT) == signal.default_int_handler  # else whoever called us ignores it
    if waiting:
        signal.signal(signal.SIGINT, _leave)
    from lcf_lightning.cli.commands import chosen

    command, rest = chosen(sys.argv[1:])  # or the end, where a text is all that is asked for
    try:
        from lcf_lightning.cli.dispatch import run
    except ModuleNotFoundError as error:
        sentence = missing_extra(error)
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        raise SystemExit(2) from error
    if waiting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run(command, rest)


def _leave(number: int, _: FrameType | None) -> None:
    os.write(2, b"stopped: SIGINT came before anything had begun.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
