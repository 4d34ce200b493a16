"""What each choice of the adapter is worth, on the embedded pair: one setting at a time, three seeds each.

    python benchmarks/ablation.py

*Settings*: `configs/quickstart_blind.yaml` with one option changed, for ``--steps`` steps only, so that what learns
faster shows. *Shifts*: `configs/quickstart.yaml` (the question shown, the paper's pooler) and `quickstart_blind.yaml`,
trained whole with and without un-rotated keys; at test time the sharer reads other facts first, which belong to no
span. Exact match on the test split (questions that need the message). Each finished run leaves a JSON file in
``--output``, and is not made again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from embedded import kept, over_seeds, trained

from lcf_lightning import Channel
from lcf_lightning.data.batch import Collator
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.data.sources.world import draw_facts, fact_text
from lcf_lightning.evaluation.answering import run_arms
from lcf_lightning.evaluation.arms import ArmCaches
from lcf_lightning.evaluation.statistics import written

SETTINGS = {
    "as it is": "",
    "gate_noise: gumbel": "--model.adapter.gate_noise gumbel",
    "gate_noise: logistic": "--model.adapter.gate_noise logistic",
    "gate_init: 0": "--model.adapter.gate_init 0",
    "d: 16": "--model.adapter.d 16",
    "d: 128": "--model.adapter.d 128",
    "d: 256": "--model.adapter.d 256",
    "distillation: 1": "--model.distillation 1",
    "spans: window:2": "--data.init_args.prompts.spans window:2",
    "pooler: span": "--model.adapter.pooler span",
    "pooler: span, gate_noise: logistic": "--model.adapter.pooler span --model.adapter.gate_noise logistic",
}
SHIFTED = {
    "question shown, span, un-rotated keys": ("quickstart", 1200, ""),
    "question shown, span, rotated keys": ("quickstart", 1200, "--model.adapter.unrotate_keys false"),
    "question hidden, prefix, un-rotated keys": ("quickstart_blind", 1600, ""),
}
SHIFTS = (0, 64, 512)
BATCH = 256


def right(channel: Channel, examples: Sequence[Example], shift: int) -> list[int]:
    """Whether each example is answered right where the sharer reads ``shift`` tokens of other facts first."""
    settings = PromptSettings(**channel.adapter.config.metadata["prompts"])
    filler = " ".join(fact_text(draw_facts(random.Random(at), 1)[0]) for at in range(shift // 4))
    moved = replace(settings, context=f"{filler} {settings.context}" if shift else settings.context)
    sharer, receiver = channel.sharer.tokenizer, channel.receiver.tokenizer
    assert len(sharer.encode(filler, add_special_tokens=False)) == shift
    collator = replace(Collator.of(moved, sharer, receiver), receiver=Collator.of(settings, sharer, receiver).receiver)
    found: list[int] = []
    for start in range(0, len(examples), BATCH):
        rows = examples[start : start + BATCH]
        batch = collator.evaluate([(row, row) for row in rows])
        found += [int(answer.exact_match) for answer in run_arms(ArmCaches(channel, batch), ["message"], 4)]
    return found


def measured(
    folder: Path, config: str, seed: int, steps: int, options: str, shifts: Sequence[int] = (0,)
) -> dict[str, Any]:
    """Train one adapter and answer the test split with it, by shift."""
    channel = Channel.from_pretrained(trained(folder, config, seed, steps, options.split()))
    examples = [row for row in World().examples("test", seed) if row.needs_sharer]
    return {str(shift): right(channel, examples, shift) for shift in shifts}


def row(name: str, runs: Sequence[dict[str, Any]], shifts: Sequence[int] = (0,)) -> str:
    cells = [name, ", ".join(f"{fmean(run['0']):.3f}" for run in runs)]
    cells += [written(over_seeds([run[str(shift)] for run in runs])) for shift in shifts]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", nargs="+", choices=(*SETTINGS, *SHIFTED), default=(*SETTINGS, *SHIFTED))
    parser.add_argument("--shifted_steps", type=int, help="steps of the shifted runs; the config's own by default")
    args = parser.parse_args()
    settings: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name in args.only:
            config, steps, options = SHIFTED.get(name) or ("quickstart_blind", args.steps, SETTINGS[name])
            if name in SHIFTED:
                steps = args.shifted_steps or steps
            shifts = SHIFTS if name in SHIFTED else (0,)
            key = f"{name}-{seed}-{steps}".replace(": ", "=").replace(" ", "_")
            run = kept(
                args.output / f"{key}.json",
                lambda what=(args.output / key, config, seed, steps, options, shifts): measured(*what),
            )
            settings.setdefault(name, []).append(run)
    print("| setting | each seed | message |\n|---|---|---|")
    print("\n".join(row(name, runs) for name, runs in settings.items() if name in SETTINGS))
    print("\n| keys | each seed, no filler | no filler | 64 tokens before | 512 tokens before |\n|---|---|---|---|---|")
    print("\n".join(row(name, runs, SHIFTS) for name, runs in settings.items() if name in SHIFTED))


if __name__ == "__main__":
    main()
