"""Whether the run ``preempted``, ``requeued`` in between, ends as the ``undisturbed`` did.

python -m tests.slurm.compare FOLDER STEPS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lcf_lightning.checkpoints import last_checkpoint, steps_of
from tests.survival import logged

ADAPTER = "adapter/lcf_adapter.safetensors"


def trained_steps(run: Path) -> list[int]:
    """The steps that a run has logged a training loss of."""
    return [int(row["step"]) for row in logged(run) if row["train/loss"]]


def main(folder: Path, steps: int) -> None:
    undisturbed, preempted, requeued = (folder / name for name in ("undisturbed", "preempted", "requeued"))
    saved = steps_of(last_checkpoint(requeued))
    repeated = sum(step >= saved for step in trained_steps(requeued))
    lost = len(set(range(steps)) - set(trained_steps(preempted)))
    checks = {
        "the signal stopped it in the middle": 0 < saved < steps,
        "no step was made twice or lost": repeated == lost == 0,
        "each step is logged once": trained_steps(preempted) == trained_steps(undisturbed) == list(range(steps)),
        "the same metrics": logged(preempted) == logged(undisturbed),
        "the same adapter, byte for byte": (preempted / ADAPTER).read_bytes() == (undisturbed / ADAPTER).read_bytes(),
    }
    for run in (undisturbed, preempted):
        checks[f"{run.name}: {steps} steps"] = json.loads((run / "summary.json").read_text())["steps"] == steps
    for check, holds in checks.items():
        sys.stdout.write(f"slurm: {'yes' if holds else 'NO '} {check}\n")
    sys.stdout.write(f"slurm: pre-empted at step {saved} of {steps}; steps repeated {repeated}, lost {lost}\n")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
