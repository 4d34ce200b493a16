"""The command line: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and what needs no Trainer."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version

import torch.distributed as dist

from lcf_lightning.cli import cache, compare, evaluate, export, import_c2c, params, prune, run
from lcf_lightning.cli.commands import Command, overview
from lcf_lightning.cli.faults import ended_by_signals, explain, goes_on
from lcf_lightning.cli.said import quiet
from lcf_lightning.errors import SettingError, Stopped
from lcf_lightning.slurm import requeue_between_steps

COMMANDS: dict[str, Command] = run.COMMANDS | {
    module.COMMAND.name: module.COMMAND for module in (evaluate, compare, prune, export, import_c2c, params, cache)
}
"""All commands; those of `run` need a Trainer."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, a fault of the machine with 1."""
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(overview(COMMANDS) + "\n")
        raise SystemExit(0)
    if arguments[0] == "--version":
        sys.stdout.write(f"lcf-lightning {version('lcf-lightning')}\n")
        raise SystemExit(0)
    try:
        if arguments[0] not in COMMANDS:
            close = get_close_matches(arguments[0], COMMANDS, 1)
            meant = f"; did you mean {close[0]}?" if close else "."
            raise SettingError(f"command {arguments[0]!r} must be one of {', '.join(COMMANDS)}{meant}")
        command, rest = COMMANDS[arguments[0]], arguments[1:]
        if command.configured and {"-h", "--help"}.intersection(rest):
            sys.stdout.write(command.help)
            raise SystemExit(0)
        if arguments[0] in {*run.COMMANDS, evaluate.COMMAND.name}:
            requeue_between_steps()
        quiet()
        goes_on.set(lambda: command.again)
        with ended_by_signals(command.name):
            command.run(["--help" if argument == "--help-all" else argument for argument in rest])
    except Exception as error:
        explained = explain(error, goes_on.get()())
        if explained is None:
            raise
        if isinstance(error, Stopped):
            atexit.register(_leave_group)
        sentence, code = explained
        sys.stderr.write(f"{sentence}\n")
        raise SystemExit(code) from error
    atexit.register(_leave_group)


def _leave_group() -> None:
    """Destroy the process group, where all ranks have ended well.

    Python must be whole when gloo's threads let go of their last tensors: otherwise they abort the process, a fit that
    has succeeded among them (pytorch issue 190489). After a fault a rank may wait for another here, so it is not done.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # what still refers to the group
