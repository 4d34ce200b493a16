"""Adapters of the embedded pair, trained once and kept: what `capacity.py` and `ablation.py` have in common."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcf_lightning.adapter.folder import CONFIG_FILE
from lcf_lightning.evaluation.statistics import RESAMPLES, Estimate
from lcf_lightning.files import write_file

CONFIGS = Path(__file__).parents[1] / "configs"


def kept(file: Path, make: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What ``make(*args)`` found, which is done once: ``file`` holds it from then on."""
    if not file.exists():
        found = make(*args)
        write_file(file, lambda aside: aside.write_text(json.dumps(found)))
    made: dict[str, Any] = json.loads(file.read_text())
    return made


def trained(folder: Path, config: str, seed: int, steps: int, options: Sequence[str]) -> Path:
    """The adapter folder of a fit, which is made once."""
    if not (folder / "adapter" / CONFIG_FILE).exists():  # written last
        subprocess.run(
            [
                sys.executable, "-m", "lcf_lightning", "fit", "--config", str(CONFIGS / f"{config}.yaml"),
                "--seed_everything", str(seed), "--trainer.max_steps", str(steps),
                "--trainer.val_check_interval", str(steps), "--trainer.enable_progress_bar", "false",
                "--trainer.default_root_dir", str(folder), *options,
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return folder / "adapter"


def over_seeds(runs: Sequence[Sequence[int]]) -> Estimate:
    """Mean of what was right over all seeds, and a bootstrap interval: seeds are drawn, then examples of each.

    95 % of the resamples are in it. Three seeds show little of how much seeds differ, so it is rather too narrow.
    """
    scores, sizes = np.array([np.mean(run) for run in runs]), np.array([len(run) for run in runs])
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(runs), size=(RESAMPLES, len(runs)))
    means = (rng.binomial(sizes[drawn], scores[drawn]) / sizes[drawn]).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(value=float(scores.mean()), low=float(low), high=float(high))
