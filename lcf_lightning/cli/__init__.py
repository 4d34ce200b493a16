"""The command line: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and what needs no Trainer."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable, Sequence

import torch.distributed as dist

from lcf_lightning.cli.cache import CacheCLI
from lcf_lightning.cli.compare import compare
from lcf_lightning.cli.evaluate import EvaluateCLI
from lcf_lightning.cli.export import export
from lcf_lightning.cli.faults import explain
from lcf_lightning.cli.params import ParamsCLI
from lcf_lightning.cli.prune import PruneCLI
from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.errors import Stopped
from lcf_lightning.slurm import requeue_between_steps

COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "params": ParamsCLI,
    "cache": CacheCLI,
    "evaluate": EvaluateCLI,
    "compare": compare,
    "prune": PruneCLI,
    "export": export,
}
"""Commands that need no Trainer; all others are Lightning's."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, a fault of the machine with 1."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        if arguments[:1] and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            requeue_between_steps()
            LCFCLI(arguments)
    except Exception as error:
        explained = explain(error)
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
