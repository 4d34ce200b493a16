"""Changed answers of an evaluation, and the changed summary of a run: what `compare`, a report and `export` read."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from lcf_lightning import AdapterConfig, AdapterSettings
from lcf_lightning.adapter.card import card
from lcf_lightning.cli.export import scores_of
from lcf_lightning.evaluation.compare import compare_reports
from lcf_lightning.evaluation.markdown import conclusions, to_markdown
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.report import build_report, summarise
from lcf_lightning.evaluation.seeds import summarise_seeds
from lcf_lightning.evaluation.tables import arms_table, comparison_table, seeds_table
from tests.fuzz.adapters import RECEIVER, SHARER
from tests.fuzz.structures import bytes_changed, changed, json_changed

ARMS = ("own_context", "message", "mismatched", "full_context", "t2t_2", "t2t_2_form", "sharer_alone", "zero")
STEPS = 4
SCORES = (None, 0.5, 1, -1.0, 2.0, 1e308, math.nan, math.inf, 10**400)
TEXTS = ("", "x", "\ud800", "\0", "[/x]", "[red]", "\x1b[2J", "e\u0301" * 50)
FIELDS: dict[str, tuple[Any, ...]] = {
    "exact_match": SCORES, "f1": SCORES, "loss": SCORES, "listening": SCORES, "choices": (0, 1, -1, 2**60, 10**30),
    "answers": ([], [""], ["tea"] * 3, ["\ud800"], ["."]), "partner_answers": ([], [""], ["."], ["tea", "x"]),
    "needs_sharer": (True, False), "partner_needs_sharer": (True, False), "text_cut": (None, True, False),
    "arm": (*ARMS, "t2t_0", f"t2t_{10**30}", "nobody"), "id": ("0", *TEXTS), "benchmark": TEXTS, "prediction": TEXTS,
    "text": TEXTS, "example": ("", "e0", "e1"),
}  # fmt: skip
"""Values of a field that are of its kind."""


def answers(seed: int) -> list[Prediction]:
    """Answers in words, by choice and open-ended, to a few questions under every arm."""
    random, found = Random(seed), []
    for number in range(9):
        kind = ("words", "choices", "open")[number % 3]
        for arm in ARMS:
            right, heard = float(random.random() < 0.5), random.uniform(0, 0.6)
            found.append(Prediction(
                id=str(number), arm=arm, needs_sharer=number != 8, prediction=random.choice(("tea", "lamp", "A  cup.")),
                answers=("tea", "a cup"), loss=random.uniform(0, 9), exact_match=None if kind == "open" else right,
                f1=None if kind == "open" else right, listening=None if arm == "sharer_alone" else heard,
                partner_answers=("lamp",) if arm == "mismatched" and kind == "words" else (), benchmark=kind,
                text="a text" if arm[:3] == "t2t" else "", text_cut=right > 0 if arm[:3] == "t2t" else None,
                choices=4 if kind == "choices" else 0, example=f"e{number}",
                partner="e0" if arm == "mismatched" else "",
            ))  # fmt: skip
    return found


def damaged(rows: list[dict[str, Any]], random: Random) -> bytes:
    """A predictions file that something has changed: some of its rows, or its bytes."""
    if random.random() < 0.15:
        return bytes_changed("".join(f"{json.dumps(row)}\n" for row in rows).encode(), random)
    table = list(rows)
    for _ in range(random.choice((1, 1, 3, len(rows)))):
        place, name = random.randrange(len(table)), random.choice(list(FIELDS))
        by_kind = random.random() < 0.7
        table[place] = table[place] | {name: random.choice(FIELDS[name])} if by_kind else changed(table[place], random)
    if random.random() < 0.1:
        table = random.choice((table[:1], table[::2], table * 2))
    return "".join(f"{json.dumps(row)}\n" for row in table).encode()


def predictions(folder: Path) -> Callable[[Random], tuple[str, Callable[[], object]]]:
    first, second = (answers(seed) for seed in (0, 1))
    rows, file = [asdict(row) for row in first], folder / "predictions.jsonl"

    def use() -> None:
        """As `compare`, `compare --seeds` and `evaluate` do."""
        found = read_predictions(file)
        made: list[Any] = [build_report(found, None, {}), summarise(found)]
        made += [to_markdown(made[0]), conclusions(made[0])]
        made += [compare_reports(found, second, "message"), summarise_seeds([found, second])]
        json.dumps(made).encode()
        seeds, compared, summary = made.pop(), made.pop(), made[1]
        for table in (arms_table(summary, ""), comparison_table(compared, "", "", ""), seeds_table(seeds, [""])):
            Console(file=io.StringIO()).print(table)

    def make(random: Random) -> tuple[str, Callable[[], object]]:
        file.write_bytes(damaged(rows, random))
        return "predictions", use

    return make


def summaries(folder: Path) -> Callable[[Random], tuple[str, Callable[[], object]]]:
    file, summary = folder / "summary.json", {**summarise(answers(0)), "steps": STEPS, "seed": 42, "train_seconds": 1.5}
    content, config = json.dumps(summary).encode(), AdapterConfig(SHARER, RECEIVER, AdapterSettings(d=8))

    def use() -> None:
        """As `export` does."""
        made = AdapterConfig.from_dict(config.to_dict() | {"metadata": {"scores": scores_of(file, STEPS)}})
        card(made, 1, 1, "a")

    def make(random: Random) -> tuple[str, Callable[[], object]]:
        file.write_bytes(json_changed(content, random))
        return "summary", use

    return make


def reports(folder: Path) -> Callable[[Random], tuple[str, Callable[[], object]]]:
    """Both, in turn."""
    kinds = predictions(folder), summaries(folder)
    return lambda random: random.choice(kinds)(random)
