"""The command line: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and what needs no Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lcf_lightning.cli.compare import compare
from lcf_lightning.cli.evaluate import EvaluateCLI
from lcf_lightning.cli.export import export
from lcf_lightning.cli.params import ParamsCLI
from lcf_lightning.cli.prune import PruneCLI
from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.errors import DivergedError, LCFError

COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "params": ParamsCLI,
    "evaluate": EvaluateCLI,
    "compare": compare,
    "prune": PruneCLI,
    "export": export,
}
"""Commands that need no Trainer; all others are Lightning's."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        if arguments[:1] and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            LCFCLI(arguments)
    except (LCFError, ValueError, MisconfigurationException) as error:
        ours = _own_cause(error)
        if ours is None:
            raise
        sys.stderr.write(f"error: {ours}\n")
        raise SystemExit(1 if isinstance(ours, DivergedError) else 2) from error


def _own_cause(error: BaseException | None) -> LCFError | MisconfigurationException | None:
    """The error that says what to change: ours behind one that jsonargparse made of it, or Lightning's."""
    while error is not None and not isinstance(error, LCFError | MisconfigurationException):
        error = error.__cause__
    return error
