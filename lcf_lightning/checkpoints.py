"""Where a run's checkpoints are, and how they are written: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lcf_lightning.errors import AdapterFileError, reason
from lcf_lightning.files import write_file

_NOT_OURS = "checkpoint='{}' is damaged or not one of this package: {}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it. Lightning's own copies it there from ``/tmp``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # else a machine that fails may have renamed a file it has not written
                except RuntimeError as error:  # torch's, in whose context is why the disk refused
                    refused = _oserror_behind(error)
                    raise (refused or error) from None

        write_file(Path(path), write)


def _oserror_behind(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def last_checkpoint(run_folder: Path) -> Path:
    """The checkpoint that a run keeps, whether it is there or not."""
    return run_folder / "checkpoints" / "last.ckpt"


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The checkpoint with most steps, of the run's own and those that Lightning's SLURM requeue leaves.

    Raises:
        AdapterFileError: If one of them is damaged.
    """
    files = [last_checkpoint(run_folder), *run_folder.glob("hpc_ckpt_*.ckpt")]
    return max((file for file in files if file.is_file()), key=steps_of, default=None)


def steps_of(file: Path) -> int:
    """The optimizer steps behind a checkpoint.

    Raises:
        AdapterFileError: If it is damaged or none of this package's.
    """
    return int(read_checkpoint(file)["global_step"])


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A Lightning checkpoint, its tensors memory-mapped: plain values and tensors, no code.

    Raises:
        AdapterFileError: If it is damaged, or not one that an `LCFModule` wrote.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        missing = {"adapter_config", "global_step", "state_dict"} - checkpoint.keys()
    except (UnpicklingError, RuntimeError, EOFError, AttributeError, ValueError) as error:
        raise AdapterFileError(_NOT_OURS.format(file, reason(error))) from error
    if missing:
        raise AdapterFileError(_NOT_OURS.format(file, f"it has no {', '.join(sorted(missing))}."))
    return checkpoint
