"""What each choice of the adapter is worth, on the embedded pair: one setting at a time, three seeds each.

    python benchmarks/ablation.py

*Settings*: `configs/quickstart_blind.yaml` with the pooler `prefix` and one option changed, for ``--steps`` steps only,
so that what learns faster shows. *Shifts*: whole runs, with and without un-rotated keys; at test time the sharer reads
other facts first, which belong to no span. *Sharer*: what it answers itself behind them; it was trained on 60 tokens
and has room for 256. Exact match on the test split, questions that need the sharer. Each finished run leaves a JSON
file in ``--output``, and is not made again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from embedded import kept, trained

from lcf_lightning import Channel
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.data.sources.world import NAMES, RELATIONS, VALUES, fact_text
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.evaluation.statistics import format_estimate, over_seeds

PREFIX = "--model.adapter.pooler prefix"
SETTINGS = {
    "as it is": "",
    "gate_noise: gumbel": "--model.adapter.gate_noise gumbel",
    "gate_noise: logistic": "--model.adapter.gate_noise logistic",
    "gate_init: 0": "--model.adapter.gate_init 0",
    "d: 16": "--model.adapter.d 16",
    "d: 256": "--model.adapter.d 256",
    "spans: window:2": "--data.init_args.prompts.spans window:2",
    "pooler: span": "--model.adapter.pooler span",
    "pooler: span, gate_noise: logistic": "--model.adapter.pooler span --model.adapter.gate_noise logistic",
}
SHIFTED = {
    "question shown, span, un-rotated keys": ("quickstart", 1200, ""),
    "question shown, span, rotated keys": ("quickstart", 1200, "--model.adapter.unrotate_keys false"),
    "question hidden, prefix, un-rotated keys": ("quickstart_blind", 1600, PREFIX),
}
SHIFTS = (0, 64, 512)
STRANGERS = NAMES[:8]
"""Whom the facts before the sharer's own are about; nobody asks for them."""
BATCH = 256


def answered(channel: Channel, examples: Sequence[Example], shift: int, arm: str) -> list[int]:
    """Whether each example is answered right where the sharer reads ``shift`` tokens of other facts first."""
    rng = random.Random(shift)
    facts = [(rng.choice(RELATIONS), rng.choice(STRANGERS), rng.choice(VALUES)) for _ in range(shift // 4)]
    filler = "".join(f"{fact_text(fact)} " for fact in facts)
    prompts, plain = channel.prompts, channel.writer.collator(channel.prompts)
    moved = channel.writer.collator(replace(prompts, context=filler + prompts.context))
    collator = replace(plain, sharer=moved.sharer)
    found: list[int] = []
    for start in range(0, len(examples), BATCH):
        batch = collator.train(examples[start : start + BATCH])
        found += [
            int(answer.exact_match) for answer in run_arms(ArmCaches(channel.link, channel.writer, batch), [arm], 4)
        ]
    return found


def measured(
    folder: Path, config: str, seed: int, steps: int, options: str, shifts: Sequence[int] = (0,)
) -> dict[str, Any]:
    """Train one adapter and answer the test split with it, by arm and shift."""
    channel = Channel.from_pretrained(trained(folder, config, seed, steps, options.split()))
    asked = [row for row in World().examples("test", seed) if row.needs_sharer]
    asked = [row for row in asked if len(shifts) == 1 or row.question.split()[1] not in STRANGERS]
    arms = ["message"] + ["sharer_alone"] * (len(shifts) > 1 and channel.prompts.share_question)
    found = {arm: {str(shift): answered(channel, asked, shift, arm) for shift in shifts} for arm in arms}
    return {"config": config, "options": options, "seed": seed, "steps": steps, **found}


def row(name: str, runs: Sequence[dict[str, Any]], arm: str = "message") -> str:
    """A line of a table: each seed's mean without a shift, then the mean over seeds by shift."""
    cells = [name, ", ".join(f"{fmean(run[arm]['0']):.3f}" for run in runs)]
    cells += [format_estimate(over_seeds([run[arm][shift] for run in runs])) for shift in runs[0][arm]]
    return f"| {' | '.join(cells)} |"


def shifted_rows(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """The line of a message, and, where the sharer has seen the question, that of its own answers."""
    arms = {"message": name, "sharer_alone": f"{name}: sharer"}
    return [row(label, runs, arm) for arm, label in arms.items() if arm in runs[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", choices=(*SETTINGS, *SHIFTED), default=(*SETTINGS, *SHIFTED))
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name in args.only:
            config, steps, options = SHIFTED.get(name) or ("quickstart_blind", args.steps, f"{PREFIX} {SETTINGS[name]}")
            shifts = SHIFTS if name in SHIFTED else (0,)
            key = f"{name}-{seed}-{steps}".replace(": ", "=").replace(":", "-").replace(" ", "_")
            what = (args.output / key, config, seed, steps, options, shifts)
            found.setdefault(name, []).append(kept(args.output / f"{key}.json", measured, *what))
    settings = [row(name, runs) for name, runs in found.items() if name in SETTINGS]
    shifted = [line for name, runs in found.items() if name in SHIFTED for line in shifted_rows(name, runs)]
    before = " | ".join(f"{shift} tokens before" for shift in SHIFTS)
    if settings:
        print("| setting | each seed | message |\n|---|---|---|", *settings, "", sep="\n")
    if shifted:
        print(f"| keys | each seed, no shift | {before} |\n|---|---|---|---|---|", *shifted, sep="\n")


if __name__ == "__main__":
    main()
