"""What a message can hold that is written before the question is known: accuracy against facts and bytes.

    python benchmarks/capacity.py

For 2, 4, 8 and 16 facts of the embedded world, three seeds and two ways to write a message (ours and the paper's LCF-X;
``--methods`` knows LCF-X without gate noise too): train `configs/quickstart_blind.yaml`, then answer the test split.
Each finished run leaves a JSON file in ``--output``, and is not made again: stop when you like, start again with the
same command. A table and a plot of all that is there come last.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from embedded import kept, trained
from matplotlib import rc_context
from matplotlib.figure import Figure

from lcf_lightning import Channel, Message
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.statistics import format_estimate, over_seeds

METHODS = {
    "carry": ("carry", "none"),
    "prefix": ("prefix", "none"),
    "LCF-X": ("span", "logistic"),
    "LCF-X without noise": ("span", "none"),
}
"""Pooler and gate noise of each; the paper's has both its own."""
COLOURS = ("#27ae60", "#c0392b", "#2c5f8a", "#7f8c8d")
BATCH = 256


def right(channel: Channel, asked: Sequence[Example], sent: Sequence[Example], dtype: str) -> tuple[list[int], int]:
    """Whether each of ``asked`` is answered right with the message of ``sent`` in ``dtype``, and bytes of the first."""
    found: list[int] = []
    for start in range(0, len(asked), BATCH):
        rows, senders = asked[start : start + BATCH], sent[start : start + BATCH]
        texts = [[fact for (fact,) in row.sharer] for row in senders]
        messages = channel.send_batch(texts, [None] * len(rows), pooled=channel.adapter.poolable)
        wire = [message.to_bytes(dtype) for message in messages]
        own = [[fact for (fact,) in row.receiver] for row in rows]
        read = [Message.from_bytes(data) for data in wire]
        answers = channel.receive_batch(read, [row.question for row in rows], own, max_new_tokens=4)
        found += [int(answer.text == row.answers[0]) for answer, row in zip(answers, rows, strict=True)]
    return found, len(wire[0])


def measured(method: str, facts: int, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one adapter and answer the test split with it."""
    pooler, noise = METHODS[method]
    options = ["--data.init_args.source.init_args.sharer_facts", str(facts)]
    options += ["--model.adapter.pooler", pooler, "--model.adapter.gate_noise", noise]
    channel = Channel.from_pretrained(trained(folder, "quickstart_blind", seed, steps, options))
    examples = list(World(sharer_facts=facts).examples("test", seed))
    need, own = ([row for row in examples if row.needs_sharer is kind] for kind in (True, False))
    message, size = right(channel, need, need, "float16")
    message_int8, size_int8 = right(channel, need, need, "int8")
    return {
        "method": method, "facts": facts, "seed": seed, "steps": steps, "bytes": size, "bytes_int8": size_int8,
        "parameters": channel.adapter.parameter_counts()["total"], "message": message, "message_int8": message_int8,
        "mismatched": right(channel, need, [*need[1:], need[0]], "float16")[0],
        "own_questions": right(channel, own, own, "float16")[0],
    }  # fmt: skip


def table(points: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    lines = [
        "| pooler | facts | message | each seed | mismatched | own questions | float16 bytes | in int8 | int8 bytes |",
        "|---|---:|---|---|---|---|---:|---:|---:|",
    ]
    for (method, facts), runs in points.items():
        arms = [
            format_estimate(over_seeds([run[arm] for run in runs]))
            for arm in ("message", "mismatched", "own_questions")
        ]
        each = ", ".join(f"{fmean(run['message']):.3f}" for run in runs)
        int8 = f"{over_seeds([run['message_int8'] for run in runs])['value']:.3f}"
        sizes = [f"{runs[0][name]:,}" for name in ("bytes", "bytes_int8")]
        cells = [method, facts, arms[0], each, *arms[1:], sizes[0], int8, sizes[1]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(points: dict[tuple[str, int], list[dict[str, Any]]]) -> Figure:
    """Accuracy against facts and against bytes in int8: means with intervals (`over_seeds`), and a dot a seed."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = (
        ("facts", "message", "facts in the message"),
        ("bytes_int8", "message_int8", "bytes of a message in int8; above each point its facts"),
    )
    for axes, (place, arm, title) in zip(panels, kinds, strict=True):
        for method in dict.fromkeys(name for name, _ in points):
            colour = COLOURS[list(METHODS).index(method)]
            own = [runs for (name, _), runs in points.items() if name == method]
            places = [runs[0][place] for runs in own]
            scores = [over_seeds([run[arm] for run in runs]) for runs in own]
            error = [[s["value"] - s["low"] for s in scores], [s["high"] - s["value"] for s in scores]]
            axes.errorbar(places, [s["value"] for s in scores], error, capsize=3, color=colour, label=method)
            apart = len(set(places)) == len(places)  # LCF-X's are all of one size
            for at, score, runs in zip(places, scores, own, strict=True) if place != "facts" and apart else ():
                axes.annotate(
                    f"{runs[0]['facts']}", (at, score["high"]), (0, 4), textcoords="offset points", ha="center",
                    fontsize=8, color=colour,
                )  # fmt: skip
            dots = [(at, fmean(run[arm])) for at, runs in zip(places, own, strict=True) for run in runs]
            axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=3.5, alpha=0.6)
        axes.set_xscale("log", base=2)
        ticks = sorted({run[place] for runs in points.values() for run in runs})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xlabel(title)
        controls = [fmean(run["mismatched"]) for runs in points.values() for run in runs]
        axes.axhline(
            fmean(controls), color="#555555", lw=1, ls="--", zorder=0, label="another example's message (mean)"
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="exact match, 95 % interval; a dot a seed", ylim=(0, 1.09))
    figure.suptitle("How many facts a message holds, the question hidden: tiny-sharer → tiny-receiver", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/capacity"))
    parser.add_argument("--facts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["prefix", "LCF-X"])
    parser.add_argument("--steps", type=int, default=1600)
    args = parser.parse_args()
    points: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for facts in args.facts:
            for method in args.methods:
                name = f"{method}-{facts}-{seed}-{args.steps}".replace(" ", "_")
                what = (method, facts, seed, args.steps, args.output / name)
                run = kept(args.output / f"{name}.json", measured, *what)
                points.setdefault((method, facts), []).append(run)
    points = dict(sorted(points.items(), key=lambda item: (item[0][1], list(METHODS).index(item[0][0]))))
    print(table(points))
    with rc_context({"svg.hashsalt": "capacity"}):  # the same runs draw the same picture
        plot(points).savefig(args.output / "capacity.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
