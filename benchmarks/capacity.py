"""What a message can hold that is written before the question is known: accuracy against facts and bytes.

    python benchmarks/capacity.py

For 2, 4, 8 and 16 facts of the embedded world, three seeds and three ways to write a message (the paper's LCF-X, the
same without gate noise, and ours): train `configs/quickstart_blind.yaml`, then answer the test split. Each finished
run leaves a JSON file in ``--output``, and is not made again: stop when you like, start again with the same command. A
table and a plot of all that is there come last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from lcf_lightning import Channel
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.statistics import Estimate, estimate, written
from lcf_lightning.files import write_file

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart_blind.yaml"
METHODS = {"prefix": ("prefix", "none"), "LCF-X": ("span", "logistic"), "LCF-X, no noise": ("span", "none")}
"""Pooler and gate noise of each."""
BATCH = 256


def right(channel: Channel, asked: Sequence[Example], sent: Sequence[Example]) -> tuple[list[int], int]:
    """Whether each of ``asked`` is answered right with the message of ``sent``, and bytes of the first (float16)."""
    found: list[int] = []
    for start in range(0, len(asked), BATCH):
        rows, senders = asked[start : start + BATCH], sent[start : start + BATCH]
        texts = [[fact for (fact,) in row.sharer] for row in senders]
        pooled = channel.adapter.config.settings.pooler == "span"
        messages = channel.send_batch(texts, [None] * len(rows), pooled=pooled)
        own = [[fact for (fact,) in row.receiver] for row in rows]
        answers = channel.receive_batch(messages, [row.question for row in rows], own, max_new_tokens=4)
        found += [int(answer.text == row.answers[0]) for answer, row in zip(answers, rows, strict=True)]
    return found, len(messages[0].to_bytes("float16"))


def measured(method: str, facts: int, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one adapter and answer the test split with it."""
    pooler, noise = METHODS[method]
    source = "--data.init_args.source.init_args.sharer_facts"
    started = time.monotonic()
    subprocess.run(
        [
            sys.executable, "-m", "lcf_lightning", "fit", "--config", str(CONFIG), source, str(facts),
            "--seed_everything", str(seed), "--trainer.max_steps", str(steps),
            "--trainer.val_check_interval", str(steps),
            "--model.adapter.pooler", pooler, "--model.adapter.gate_noise", noise,
            "--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false",
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.monotonic() - started
    channel = Channel.from_pretrained(folder / "adapter")
    examples = list(World(sharer_facts=facts).examples("test", seed))
    need, own = ([row for row in examples if row.needs_sharer is kind] for kind in (True, False))
    message, size = right(channel, need, need)
    return {
        "method": method, "facts": facts, "seed": seed, "steps": steps, "bytes": size, "seconds": round(seconds),
        "parameters": channel.adapter.parameter_counts()["total"], "message": message,
        "mismatched": right(channel, need, [*need[1:], need[0]])[0], "own_questions": right(channel, own, own)[0],
    }  # fmt: skip


def pooled_over_seeds(runs: Sequence[dict[str, Any]], arm: str) -> Estimate:
    return estimate([answer for run in runs for answer in run[arm]])


def table(points: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    lines = [
        "| method | facts | seeds | message | least and greatest seed | mismatched | own questions | bytes, float16 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (method, facts), runs in points.items():
        arms = [written(pooled_over_seeds(runs, arm)) for arm in ("message", "mismatched", "own_questions")]
        scores = sorted(fmean(run["message"]) for run in runs)
        spread = f"{scores[0]:.3f}, {scores[-1]:.3f}"
        cells = [method, facts, len(runs), arms[0], spread, *arms[1:], f"{runs[0]['bytes']:,}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(points: dict[tuple[str, int], list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    by_facts, by_bytes = figure.subplots(1, 2, sharey=True)
    for method, colour in zip(METHODS, ("#c0392b", "#2c5f8a", "#7f8c8d"), strict=True):
        own = {facts: runs for (name, facts), runs in points.items() if name == method}
        scores = [pooled_over_seeds(runs, "message") for runs in own.values()]
        values = [score["value"] for score in scores]
        error = [[s["value"] - s["low"] for s in scores], [s["high"] - s["value"] for s in scores]]
        for axes, places in ((by_facts, list(own)), (by_bytes, [runs[0]["bytes"] for runs in own.values()])):
            axes.errorbar(places, values, yerr=error, marker="o", capsize=3, color=colour, label=method)
            axes.set_xscale("log", base=2)
    by_facts.set_xlabel("facts in the message")
    by_bytes.set_xlabel("bytes of a message, float16")
    by_facts.set_ylabel("exact match, question hidden")
    by_facts.set_ylim(0, 1.02)
    by_facts.legend()
    every = [run for runs in points.values() for run in runs]
    for axes, name in ((by_facts, "facts"), (by_bytes, "bytes")):
        places = sorted({run[name] for run in every})
        axes.set_xticks(places, [f"{place:,}" for place in places], minor=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/capacity"))
    parser.add_argument("--facts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=1600)
    args = parser.parse_args()
    points: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for facts in args.facts:
            for method in args.methods:
                name = f"{method}-{facts}-{seed}-{args.steps}"
                file = args.output / f"{name}.json"
                if not file.exists():
                    run = measured(method, facts, seed, args.steps, args.output / name)
                    write_file(file, lambda aside, run=run: aside.write_text(json.dumps(run)))
                points.setdefault((method, facts), []).append(json.loads(file.read_text()))
    points = dict(sorted(points.items(), key=lambda item: (item[0][1], list(METHODS).index(item[0][0]))))
    print(table(points))
    plot(points).savefig(args.output / "capacity.svg")


if __name__ == "__main__":
    main()
