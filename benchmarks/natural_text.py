"""What is communicated on natural text, by method: a pair that can read, HotpotQA, equal data and steps.

    python benchmarks/natural_text.py --output runs/natural_text
    python benchmarks/natural_text.py --output runs/natural_text --rows carry LCF-X --model.prefills.folder prefills

Each row of the table is a fit of `configs/qwen_coder_hotpotqa.yaml` with other options, and answers to the test split;
text arms are answered once, with the first row. Options that are not of this script go to all fits and evaluations,
such as paths of models, or where prefills are kept (best: each text is then read once for all rows). Fits and answers
that are there are not made again: stop when you like, start again with the same command.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from embedded import CONFIGS, trained

from lcf_lightning.evaluation.audit import audit, paired
from lcf_lightning.evaluation.prediction import Prediction, by_arm, columns
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.statistics import estimate, format_estimate

TEXT_ARMS = ("question_only", "own_context", "full_context", "full_context_form", "t2t_200", "t2t_200_form")
GAINS = ("content_attributable_gain", "gain_over_other_text")
LAST_TOKENS = '--model.adapter.pooler {"class_path":"carry","init_args":{"tokens":%d}}'
REREAD = "--data.init_args.prompts.reread question"


class Row(NamedTuple):
    """One method.

    Attributes:
        fit: Options of the fit.
        data: Options of fit and evaluation.
        evaluate: Options of the evaluation alone.
        of: Another row, whose adapter is evaluated; null for its own.
        config: The config.
    """

    fit: str = ""
    data: str = ""
    evaluate: str = ""
    of: str | None = None
    config: str = "qwen_coder_hotpotqa"


ROWS = {
    "carry": Row(),
    "carry, re-read": Row("--model.optimizer.init_args.lr 1e-3", REREAD),
    "carry, last 32 tokens": Row(LAST_TOKENS % 32),
    "carry, last 8 tokens": Row(LAST_TOKENS % 8),
    "carry, not trained": Row("--model.optimizer.init_args.lr 0 --trainer.max_steps 1"),
    "carry, not trained, re-read": Row(of="carry, not trained", evaluate=REREAD),
    "LCF-X": Row("--model.adapter.pooler span --model.adapter.gate_noise logistic"),
    "prefix": Row("--model.adapter.pooler prefix", "--data.init_args.prompts.spans window:8"),
    "carry, wrong messages": Row(config="qwen_coder_hotpotqa_wrong"),
}


def answers(name: str, arms: Sequence[str], args: argparse.Namespace, options: list[str]) -> list[Prediction]:
    """Every answer to the test split with a row's adapter, which is trained where it is not there."""
    row, whose = ROWS[name], ROWS[name].of or name
    source = "--data.init_args.source.init_args." + "source.init_args." * (ROWS[whose].config.endswith("wrong"))
    data = [("train", args.train), ("test", args.test), ("train_limit", args.train_limit)]
    options = [*options, *(part for key, value in data if value for part in (source + key, str(value)))]
    run = args.output / f"{_slug(whose)}-{args.seed}"
    fit = [*options, *ROWS[whose].fit.split(), *ROWS[whose].data.split(), "--trainer.limit_test_batches", "1"]
    adapter = trained(run, ROWS[whose].config, args.seed, args.steps, fit)
    output = args.output / f"{_slug(name)}-{args.seed}-answers"
    command = [sys.executable, "-m", "lcf_lightning", "evaluate", "--config", f"{CONFIGS / ROWS[whose].config}.yaml"]
    command += ["--seed_everything", str(args.seed), "--adapter", str(adapter), "--output", str(output)]
    command += ["--arms", f"[{','.join(arms)}]", "--repeats", "0", "--trainer.enable_progress_bar", "false"]
    subprocess.run(
        [*command, *options, *ROWS[whose].data.split(), *row.evaluate.split()], check=True, stdout=subprocess.DEVNULL
    )
    return read_predictions(output / "predictions.jsonl")


def table(found: dict[str, list[Prediction]]) -> str:
    """Each arm of each row, what of a message's F1 is about its content, and how far the first message is above."""
    head = (
        "answers from",
        "exact match",
        "F1",
        "loss",
        *(f"F1, {name}" for name in GAINS),
        "first message over it, F1",
        "n",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    first = by_arm(next(iter(found.values())), needs_sharer=True)["message"]
    for name, predictions in found.items():
        comparisons = audit(predictions)["comparisons"]
        for arm, rows in by_arm(predictions, needs_sharer=True).items():
            scores = [format_estimate(estimate(part)) for part in columns(rows.values())]
            gains = [comparisons[gain]["gain_f1"] if arm == "message" else None for gain in GAINS]
            gains.append(paired(first, rows)["gain_f1"] if rows is not first else None)
            signed = [format_estimate(gain, signed=True) if gain else "" for gain in gains]
            lines.append(f"| {' | '.join([f'{name}: {arm}', *scores, *signed, str(len(rows))])} |")
    return "\n".join(lines)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/natural_text"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--texts", nargs="*", default=TEXT_ARMS, help="text arms, answered with the first row")
    parser.add_argument("--train", help="training rows of HotpotQA: a local file instead of the hub's")
    parser.add_argument("--test", help="likewise the rows that are answered")
    parser.add_argument("--train_limit", type=int, help="training rows that are used (default: all)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=200)
    args, options = parser.parse_known_args()
    found: dict[str, list[Prediction]] = {}
    for place, name in enumerate(args.rows):
        arms = ["message", "mismatched", "other_text", *(args.texts if place == 0 else ())]
        found[name] = answers(name, arms, args, options)
        print(f"{name} done", file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
