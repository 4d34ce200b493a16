"""fit, evaluate, cache and export, killed at random moments and started again by the same command.

    python -m tests.kills FOLDER --kills 120

SIGKILL comes at a time drawn from all that a command takes, its imports aside: each is a fork of a process that has
made them (`tests/survival.py` kills a fit during them, too). A command that was faster is compared, and begun anew.
Prints JSON: of each command its kills, how often what came of it was compared with one left alone, and what differed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import load_file

from lcf_lightning.cli import main as command_line
from tests.survival import ROOT
from tests.survival import outcome as fit_outcome

CONFIG = [
    "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.enable_progress_bar", "false",
    "--data.source.train_size", "64", "--data.source.validation_size", "8", "--data.source.test_size", "8",
    "--model.adapter.d", "32", "--data.eval_batch_size", "4",
]  # fmt: skip
FIT = [
    *CONFIG, "--ckpt_path", "last", "--trainer.max_steps", "12", "--data.batch_size", "8",
    "--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1",
    "--trainer.callbacks+", "LastCheckpoint", "--trainer.callbacks.every_n_steps", "2",
    "--trainer.callbacks+", "Speedup", "--trainer.callbacks.budgets", "[2]", "--trainer.callbacks.repeats", "1",
]  # fmt: skip


@dataclass
class Killed:
    """A command, and what became of it.

    Attributes:
        arguments: Its arguments, from the folder that it writes.
        outcome: What must not depend on kills, from that folder.
        seconds: How long it takes when it is left alone.
        expected: What comes of it then.
    """

    arguments: Callable[[Path], list[str]]
    outcome: Callable[[Path], dict[str, Any]]
    seconds: float = 0.0
    expected: dict[str, Any] = field(default_factory=dict)
    kills: int = 0
    compared: int = 0
    differs: list[str] = field(default_factory=list)

    def compare(self, folder: Path) -> None:
        """Compare what came of it with what it should be, and begin anew."""
        found = self.outcome(folder)
        self.compared += 1
        self.differs += [name for name in self.expected if not _same(self.expected[name], found.get(name))]
        shutil.rmtree(folder)


def evaluated(folder: Path) -> dict[str, Any]:
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    report = json.loads((folder / "report.json").read_text())
    facts = {name: value for name, value in report.pop("facts").items() if name not in ("command", "hardware")}
    answers = {f"{row['arm']} {row['example']}": row for row in rows}
    names = sorted(path.name for path in folder.iterdir())
    return {"answers": answers, "report": report, "facts": facts, "files": names}


def kept(folder: Path) -> dict[str, Any]:
    """Of a store what is read again: not what a killed process left unfinished."""
    files = [file for file in folder.rglob("*.safetensors") if not file.name.startswith(".")]
    return {file.name: load_file(file) for file in sorted(files)}


def fitted(folder: Path) -> dict[str, Any]:
    """All but the step that the final test is logged at: after some kills Lightning counts one less there."""
    found = fit_outcome(folder)
    tested = [row for row in found["metrics"] if row.get("test/loss")]
    for row in tested:
        row.update(step="", epoch="")
    return found


def exported(folder: Path) -> dict[str, Any]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes().replace(bytes(folder), b"") for file in files}


def commands(run: Path) -> dict[str, Killed]:
    """Those that need a run have that of ``run``."""
    evaluate = ["--repeats", "0", "--arms", "[own_context,message,mismatched]", "--trainer.default_root_dir", str(run)]
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    return {
        "fit": Killed(lambda folder: ["fit", *FIT, "--trainer.default_root_dir", str(folder)], fitted),
        "evaluate": Killed(
            lambda folder: ["evaluate", *CONFIG, *evaluate, "--output", str(folder)], evaluated),
        "cache": Killed(lambda folder: ["cache", *CONFIG, "--model.prefills.folder", str(folder)], kept),
        "export": Killed(
            lambda folder: ["export", "--checkpoint", checkpoint, "--output", str(folder / "adapter")], exported),
    }  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    """Exactly; but of tensors to the rounding of other batches, which a store that goes on computes."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.allclose(one, other, atol=1e-5, rtol=1e-4)
    return bool(one == other)


def _quietly(arguments: list[str]) -> None:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    command_line(arguments)


def run_for(arguments: list[str], seconds: float | None = None) -> bool:
    """Run a command, to its end or for so long; whether it ended by itself.

    Raises:
        RuntimeError: If it failed.
    """
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(arguments,))
    process.start()
    process.join(seconds)
    ended = not process.is_alive()
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        raise RuntimeError(f"{arguments} ended with {process.exitcode}")
    return ended and process.exitcode == 0


def whole(name: str, place: Path) -> bool:
    """Whether an export was killed after its folder had got its name: the same command would refuse it."""
    return name == "export" and (place / "adapter").exists()


def kill(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """So many kills, over all commands in turn."""
    draw, run = Random(seed), folder / "undisturbed fit"
    found = commands(run)
    for name, each in found.items():
        place = run if name == "fit" else folder / f"undisturbed {name}"
        started = time.monotonic()
        if not run_for(each.arguments(place)):
            raise RuntimeError(f"{name} was killed by somebody else")
        each.seconds = time.monotonic() - started
        each.expected = each.outcome(place)
    turns = 0
    while sum(each.kills for each in found.values()) < kills:
        name = list(found)[turns % len(found)]
        each, place, turns = found[name], folder / f"killed {name}", turns + 1
        seconds = draw.uniform(0, each.seconds)
        if whole(name, place) or run_for(each.arguments(place), seconds):
            each.compare(place)
        else:
            each.kills += 1
        sys.stderr.write(f"{turns}: {', '.join(f'{n} {e.kills}/{e.compared}' for n, e in found.items())}\n")
    for name, each in found.items():
        place = folder / f"killed {name}"
        if not whole(name, place):
            run_for(each.arguments(place))
        each.compare(place)
    return {name: {"kills": e.kills, "compared": e.compared, "differs": e.differs} for name, e in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = kill(args.folder, args.kills, args.seed)
    sys.stdout.write(json.dumps({"kills": args.kills, "seed": args.seed, **found}, indent=2) + "\n")
    sys.exit(any(each["differs"] for each in found.values()))


if __name__ == "__main__":
    main()
