"""What is communicated on natural text, by method: a pair that can read, HotpotQA, equal data and steps.

    python benchmarks/natural_text.py --output runs/natural_text
    python benchmarks/natural_text.py --output runs/natural_text --rows carry LCF-X --model.prefills.folder prefills
    python benchmarks/natural_text.py --output runs/squad --config qwen_coder_squad --rows carry

Each row of the table is a fit of a config with other options, and answers to the test split; text arms are answered
once, with the first row. Options that are not of this script go to all fits and evaluations, such as paths of models,
or where prefills are kept (best: each text is then read once for all rows). Fits and answers that are there are not
made again: stop when you like, start again with the same command. With ``--repeats`` the first row's texts and every
message are timed too, on a machine that does nothing else, and what quality costs in time and in bytes is drawn:
quality.svg. Bytes are float16's, but of arms that name another dtype; rounding to it is in no time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedded import CONFIGS, trained
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.audit import audit, paired
from lcf_lightning.evaluation.prediction import Prediction, by_arm, columns
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.statistics import Estimate, estimate, format_estimate
from lcf_lightning.files import write_file
from lcf_lightning.wire import LARGEST

TEXT_ARMS = ("question_only", "own_context", "full_context", "full_context_form", "t2t_200", "t2t_200_form")
GAINS = ("content_attributable_gain", "gain_over_other_text")
REREAD = "--data.init_args.prompts.reread question"
SEND = "--data.init_args.prompts.send_tokens %d"
TEXT, ALONE = "#2c5f8a", "#7f8c8d"
MESSAGES = ("#c0392b", "#e67e22", "#27ae60", "#8e44ad", "#b7950b", "#17a2b8")


class Row(NamedTuple):
    """One method.

    Attributes:
        fit: Options of the fit.
        data: Options of fit and evaluation.
        evaluate: Options of the evaluation alone.
        of: Another row, whose adapter is evaluated; null for its own.
        wrong: Whether it is trained on messages of other examples.
    """

    fit: str = ""
    data: str = ""
    evaluate: str = ""
    of: str | None = None
    wrong: bool = False


ROWS = {
    "carry": Row(),
    "carry, re-read": Row("--model.optimizer.init_args.lr 1e-3", REREAD),
    **{f"carry, re-read, {n} tokens": Row(of="carry, re-read", evaluate=SEND % n) for n in (64, 32, 16, 8)},
    "carry, not trained": Row("--model.optimizer.init_args.lr 0 --trainer.max_steps 1"),
    "carry, not trained, re-read": Row(of="carry, not trained", evaluate=REREAD),
    "LCF-X": Row("--model.adapter.pooler span --model.adapter.gate_noise logistic"),
    "prefix": Row("--model.adapter.pooler prefix", "--data.init_args.prompts.spans window:8"),
    "carry, wrong messages": Row(wrong=True),
}


class Found(NamedTuple):
    """What a row gave.

    Attributes:
        predictions: All answers.
        report: The evaluation's `report.json`.
    """

    predictions: list[Prediction]
    report: dict[str, Any]

    @property
    def arms(self) -> dict[str, dict[str, Prediction]]:
        """Answers to questions that need the sharer, by arm and example."""
        return by_arm(self.predictions, needs_sharer=True)

    def cost(self, arm: str) -> tuple[float, int] | None:
        """Seconds to an arm's first token and bytes that were sent for it, medians; null where nothing was timed."""
        dtype = arm.removeprefix("message_")
        timed = self.report["latency"] and self.report["latency"]["arms"].get("message" if dtype in LARGEST else arm)
        if not timed:
            return None
        sizes = timed["sent_bytes"]
        size = sizes.get(dtype if dtype in LARGEST else "float16", sizes.get("UTF-8"))
        return None if size is None and sizes else (timed["ttft"]["median"] / 1000, size or 0)


def answers(name: str, arms: Sequence[str], args: argparse.Namespace, options: list[str]) -> Found:
    """Every answer to the test split with a row's adapter, which is trained where it is not there."""
    row, whose = ROWS[name], ROWS[name].of or name
    config = args.config + "_wrong" * ROWS[whose].wrong
    source = "--data.init_args.source.init_args." + "source.init_args." * ROWS[whose].wrong
    data = [("train", args.train), ("test", args.test), ("train_limit", args.train_limit)]
    options = [*options, *(part for key, value in data if value for part in (source + key, str(value)))]
    run = args.output / f"{_slug(whose)}-{args.seed}"
    fit = [*options, *ROWS[whose].fit.split(), *ROWS[whose].data.split(), "--trainer.limit_test_batches", "1"]
    adapter = trained(run, config, args.seed, args.steps, fit)
    output = args.output / f"{_slug(name)}-{args.seed}-answers{f'-{args.limit}' if args.limit else ''}"
    command = [sys.executable, "-m", "lcf_lightning", "evaluate", "--config", f"{CONFIGS / config}.yaml"]
    command += ["--seed_everything", str(args.seed), "--adapter", str(adapter), "--output", str(output)]
    command += ["--arms", f"[{','.join(arms)}]", "--repeats", str(args.repeats)]
    command += ["--trainer.enable_progress_bar", "false", *(["--limit", str(args.limit)] if args.limit else [])]
    command += [*options, *ROWS[whose].data.split(), *row.evaluate.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Found(read_predictions(output / "predictions.jsonl"), json.loads((output / "report.json").read_text()))


def table(found: dict[str, Found]) -> str:
    """Each arm of each row, what of a message's F1 is about its content, and how far the first message is above."""
    head = (
        "answers from", "exact match", "F1", "loss", *(f"F1, {name}" for name in GAINS),
        "first message over it, F1", "n", "seconds to first token", "bytes sent",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    first = next(iter(found.values())).arms["message"]
    for place, (name, row) in enumerate(found.items()):
        comparisons = audit(row.predictions)["comparisons"]
        for arm, rows in row.arms.items():
            scores = [format_estimate(estimate(part)) for part in columns(rows.values())]
            gains = [comparisons[gain]["gain_f1"] if arm == "message" else None for gain in GAINS]
            gains.append(paired(first, rows)["gain_f1"] if place or arm != "message" else None)
            signed = [format_estimate(gain, signed=True) if gain else "" for gain in gains]
            cost = row.cost(arm)
            costs = [f"{cost[0]:.2f}", f"{cost[1]:,}"] if cost else ["", ""]
            lines.append(f"| {' | '.join([f'{name}: {arm}', *scores, *signed, str(len(rows)), *costs])} |")
    return "\n".join(lines)


def plot(found: dict[str, Found]) -> Figure:
    """F1 against the time to the first token and against bytes sent: messages of each row, and texts of the first."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for place, (name, row) in enumerate(found.items()):
        scores = {arm: estimate(columns(rows.values())[1]) for arm, rows in row.arms.items() if row.cost(arm)}
        messages = [arm for arm in scores if find_arm(arm).family == "message"]
        texts = sorted((arm for arm in scores if arm.startswith("t2t_")), key=lambda arm: find_arm(arm).budget)
        _curve(panels, row, {arm: scores[arm] for arm in messages}, name, MESSAGES[place % len(MESSAGES)], "*")
        if place == 0:
            _curve(panels, row, {arm: scores[arm] for arm in texts}, "text that the sharer writes", TEXT, "o")
            for arm, label in (("own_context", "receiver alone"), ("full_context", "receiver reads both texts")):
                if arm in scores:
                    _level(panels, scores[arm]["value"], label)
    for panel, title in zip(panels, ("seconds to the first token", "bytes sent"), strict=True):
        panel.set_xscale("log")
        panel.set_xlabel(f"{title} (log scale; left is better)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("F1 of the answers, 95 % interval")
    figure.suptitle("What a good answer costs: messages, and texts of several lengths", fontsize=10)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _curve(
    panels: Sequence[Axes], row: Found, scores: dict[str, Estimate], label: str, colour: str, marker: str
) -> None:
    """Some arms as points on one line, in each panel at what they cost."""
    if not scores:
        return
    values = [score["value"] for score in scores.values()]
    error = [[score["value"] - score["low"] for score in scores.values()]]
    error.append([score["high"] - score["value"] for score in scores.values()])
    costs = [cost for arm in scores if (cost := row.cost(arm))]
    for panel, places in zip(panels, zip(*costs, strict=True), strict=True):
        panel.errorbar(
            places, values, error, fmt=f"{marker}-", color=colour, label=label, capsize=2, elinewidth=0.8,
            linewidth=1, markersize=11 if marker == "*" else 6,
        )  # fmt: skip


def _level(panels: Sequence[Axes], value: float, label: str) -> None:
    for panel in panels:
        panel.axhline(value, color=ALONE, linewidth=1, linestyle=":")
        panel.annotate(
            label, (0.99, value), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            fontsize=8, color=ALONE,
        )  # fmt: skip


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/natural_text"))
    parser.add_argument("--config", default="qwen_coder_hotpotqa", help="of configs/, without its ending")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    texts = f"arms that the first row answers too, in place of {' '.join(TEXT_ARMS)}; a bare --texts: none"
    parser.add_argument("--texts", nargs="*", default=TEXT_ARMS, help=texts)
    parser.add_argument("--train", help="training rows: a local file instead of the hub's")
    parser.add_argument("--test", help="likewise the rows that are answered")
    parser.add_argument("--train_limit", type=int, help="training rows that are used (default: all)")
    parser.add_argument("--limit", type=int, help="answer a seeded sample of so many rows (default: all)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=0, help="times that each arm is timed (default: none is)")
    args, options = parser.parse_known_args()
    for config in {args.config + "_wrong" * ROWS[name].wrong for name in args.rows}:
        if not (CONFIGS / f"{config}.yaml").is_file():
            parser.error(f"--config {args.config}: there is no configs/{config}.yaml, which one of --rows needs.")
    found: dict[str, Found] = {}
    for place, name in enumerate(args.rows):
        arms = ["message", "mismatched", "other_text", *(args.texts if place == 0 else ())]
        found[name] = answers(name, arms, args, options)
        print(f"{name} done", file=sys.stderr, flush=True)
    print(table(found))
    if args.repeats:
        with rc_context({"svg.hashsalt": "natural_text"}):  # the same answers and times draw the same picture
            figure = plot(found)
            write_file(args.output / "quality.svg", lambda file: figure.savefig(file, metadata={"Date": None}))


if __name__ == "__main__":
    main()
