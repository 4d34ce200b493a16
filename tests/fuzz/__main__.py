"""Changed adapters, checkpoints, messages and kept prefills: each is taken, or refused by a sentence of ours.

    python -m tests.fuzz --seconds 150                           # as `.ci/run` does; exit code 1 on any foreign error
    python -m tests.fuzz --only adapters --inputs 2000 --seed 0  # so many of one kind

Prints JSON: of each kind how many inputs were taken, refused or foreign; the largest memory and the slowest refusal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers.utils import logging

from tests.fuzz import adapters, checkpoints, others, reports
from tests.fuzz.watching import Found, limited_memory, watch

Next = Callable[[Random], tuple[str, Callable[[], object]]]
"""Makes the next input: what it is, and its use."""


def adapter_folders(folder: Path) -> Next:
    seeds = adapters.seeds(folder)

    def make(random: Random) -> tuple[str, Callable[[], object]]:
        seed = random.choice(seeds)
        label = f"{adapters.damaged(seed, seeds, folder / 'damaged', random)} of {seed.name}"
        return label, lambda: adapters.use(folder / "damaged", folder / "saved")

    return make


def lightning_checkpoints(folder: Path) -> Next:
    seed = checkpoints.seed(folder)

    def make(random: Random) -> tuple[str, Callable[[], object]]:
        label = checkpoints.damaged(seed, folder / "run" / "checkpoints" / "last.ckpt", random)
        return label, lambda: checkpoints.use(folder / "run")

    return make


KINDS: dict[str, Callable[[Path], Next]] = {
    "adapters": adapter_folders, "checkpoints": lightning_checkpoints, "messages": others.messages,
    "prefills": others.prefills, "reports": reports.reports,
}  # fmt: skip


def fuzz(make: Next, seed: int, inputs: int | None, seconds: float) -> Found:
    """Inputs one after the other, each drawn from its own number, until there are so many or the time is over."""
    found, until, number = Found(), time.monotonic() + seconds, 0
    while (number < inputs) if inputs is not None else (time.monotonic() < until):
        label, use = make(Random(f"{seed} {number}"))
        before = found.outcomes["foreign"]
        watch(use, found, f"{number}: {label}")
        if found.outcomes["foreign"] > before:
            found.worst.setdefault("foreign inputs", []).append(f"{number}: {label}")
        number += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=150, help="For all kinds together.")
    parser.add_argument("--inputs", type=int, help="Of each kind, in place of a time.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    kinds = {name: start for name, start in KINDS.items() if args.only in (None, name)}
    report = {}
    for name, start in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            make = start(Path(folder))
            with limited_memory():
                report[name] = fuzz(make, args.seed, args.inputs, args.seconds / len(kinds)).summary()
    sys.stdout.write(json.dumps({"seed": args.seed, **report}, indent=2) + "\n")
    sys.exit(any(row["foreign"] for row in report.values()))


if __name__ == "__main__":
    main()
