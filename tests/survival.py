"""A fit that is killed again and again, each time started by the same command, against one that is left alone.

    python -m tests.survival FOLDER --kills 40

SIGKILL comes at random times, from the start of the process to the end of its evaluation, and every other time in the
moment in which a checkpoint is being written. Prints JSON: kills, when they came, and what differs in the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = 40
ARGUMENTS = [
    "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.max_steps", str(STEPS), "--data.batch_size", "8",
    "--data.eval_batch_size", "16", "--data.source.train_size", "160", "--data.source.validation_size", "16",
    "--data.source.test_size", "16", "--trainer.val_check_interval", "8", "--trainer.log_every_n_steps", "1",
    "--trainer.enable_progress_bar", "false", "--ckpt_path", "last", "--model.adapter.d", "128",
    "--trainer.callbacks+", "LastCheckpoint", "--trainer.callbacks.every_n_steps", "3",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lcf_lightning", "fit", *ARGUMENTS, "--trainer.default_root_dir", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(folder: Path) -> float:
    """Run to the end; the seconds it took."""
    started = time.monotonic()
    process = start(folder)
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(errors)
    return time.monotonic() - started


def kill_at(folder: Path, seconds: float) -> bool:
    """Kill a run after some seconds; whether it was still there."""
    process = start(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() != 0


def being_written(folder: Path) -> set[Path]:
    """Checkpoints not yet renamed to their name."""
    try:
        return set((folder / "checkpoints").glob(".last-*.ckpt"))
    except FileNotFoundError:  # a run killed before its first checkpoint is moved aside by the next while we look
        return set()


def kill_while_saving(folder: Path, count: int) -> bool:
    """Kill a run while it writes its ``count``-th checkpoint; whether that came."""
    left = being_written(folder)  # by an earlier kill
    process, seen = start(folder), left
    while process.poll() is None:
        seen = seen | being_written(folder)
        if len(seen - left) >= count:
            process.kill()
            break
    return process.wait() != 0


def logged(folder: Path) -> list[dict[str, str]]:
    """All rows but the measured times."""
    with (folder / "metrics.csv").open(newline="") as stored:
        rows = list(csv.DictReader(stored))
    return [{name: value for name, value in row.items() if not name.startswith("speedup/")} for row in rows]


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on kills."""
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "adapter": (folder / "adapter" / "lcf_adapter.safetensors").read_bytes(),
        "best adapter": (folder / "adapter_best" / "lcf_adapter.safetensors").read_bytes(),
        "metrics": logged(folder),
        "summary": {name: value for name, value in summary.items() if name not in ("train_seconds", "speedup")},
    }


def survive(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill a run ``kills`` times, let it finish, and compare it with an undisturbed one."""
    draw = random.Random(seed)
    seconds = finish(folder / "undisturbed")
    expected, killed = outcome(folder / "undisturbed"), folder / "killed"
    found: dict[str, Any] = {"kills at a random time": 0, "kills while saving": 0, "runs that ended first": 0}
    for turn in range(kills):
        if turn % 2:
            hit, kind = kill_while_saving(killed, draw.randint(1, 3)), "kills while saving"
        else:
            hit, kind = kill_at(killed, draw.uniform(0, seconds)), "kills at a random time"
        found[kind if hit else "runs that ended first"] += 1
        if not hit:  # done: the next kills are another run's
            found["differs"] = found.get("differs", []) + _differing(expected, outcome(killed))
            shutil.rmtree(killed)
    finish(killed)
    found["differs"] = found.get("differs", []) + _differing(expected, outcome(killed))
    found["steps"] = outcome(killed)["summary"]["steps"]
    return found


def _differing(expected: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [name for name, value in expected.items() if ours[name] != value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = survive(args.folder, args.kills, args.seed)
    sys.stdout.write(json.dumps({"kills": args.kills, "seed": args.seed, **found}, indent=2) + "\n")
    sys.exit(bool(found["differs"]))


if __name__ == "__main__":
    main()
