"""A SLURM job that is told of its end goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
from types import FrameType

from lcf_lightning.errors import Stopped, reason

SIGNAL = signal.SIGUSR1
"""What ``sbatch --signal=USR1@300`` sends five minutes before the time limit."""


def job() -> str | None:
    """The job that this process belongs to, as SLURM's commands name it: one task of an array, not all of it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Put this job back into the queue; why that could not be done, or nothing."""
    try:
        subprocess.run(["scontrol", "requeue", str(job())], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return error.stderr.strip() or reason(error)
    except OSError as error:
        return reason(error)
    return ""


def requeue_between_steps() -> None:
    """From now on the signal puts the job back into the queue at once: what there is to keep is on disk.

    A fit takes over while it trains (`LastCheckpoint`).
    """
    if job() is not None:
        signal.signal(SIGNAL, _requeue_at_once)


def _requeue_at_once(number: int, _: FrameType | None) -> None:
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return  # rank 0 asks; its end is that of the others
    refused = requeue()
    then = f"job {job()} could not be queued again ({refused})" if refused else f"job {job()} is queued again"
    raise Stopped(f"{SIGNAL.name} came, and {then}.", number, requeued=not refused)
