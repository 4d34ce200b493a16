"""The command line: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and what needs no Trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lcf_lightning.cli.commands import COMMANDS, chosen

__all__ = ["COMMANDS", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, a fault of the machine with 1."""
    name, rest = chosen(sys.argv[1:] if args is None else args)
    from lcf_lightning.cli.dispatch import run

    run(name, rest)
