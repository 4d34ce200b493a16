"""Adapters of the embedded pair, trained once and kept: what `capacity.py` and `ablation.py` have in common."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lcf_lightning.adapter.folder import CONFIG_FILE
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
    if not (folder / "adapter" / CONFIG_FILE).exists():  # from then on it is whole
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
