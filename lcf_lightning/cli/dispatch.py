"""Runs a command, and says in one sentence what has ended it. Imports torch and Lightning, which takes seconds."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence

import torch.distributed as dist

from lcf_lightning.cli.cache import cache
from lcf_lightning.cli.commands import COMMANDS, LIGHTNING
from lcf_lightning.cli.compare import compare
from lcf_lightning.cli.evaluate import evaluate
from lcf_lightning.cli.export import export
from lcf_lightning.cli.faults import ended_by_signals, explain, goes_on
from lcf_lightning.cli.import_c2c import import_c2c
from lcf_lightning.cli.params import params
from lcf_lightning.cli.prune import prune
from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.cli.said import quiet
from lcf_lightning.errors import Stopped, shown
from lcf_lightning.slurm import requeue_between_steps

_OTHERS = {
    "evaluate": evaluate, "compare": compare, "prune": prune, "export": export, "import-c2c": import_c2c,
    "params": params, "cache": cache,
}  # fmt: skip


def run(name: str, args: Sequence[str]) -> None:
    """Run a command with its arguments; see `main`."""
    try:
        if name in {*LIGHTNING, "evaluate"}:
            requeue_between_steps()
        quiet()
        goes_on.set(lambda: COMMANDS[name].again)
        given = ["--help" if argument == "--help-all" else argument for argument in args]
        with ended_by_signals(name):
            if name in LIGHTNING:
                LCFCLI([name, *given])
            else:
                _OTHERS[name](given)
    except Exception as error:
        explained = explain(error, goes_on.get()())
        if explained is None:
            raise
        if isinstance(error, Stopped):
            atexit.register(_leave_group)
        sentence, code = explained
        sys.stderr.write(f"{shown(sentence)}\n")
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
