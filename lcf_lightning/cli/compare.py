"""``compare``: two evaluations against each other, paired by question; or those of several seeds together."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lcf_lightning.cli.answers import PREDICTIONS
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.compare import compare_reports
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.seeds import summarise_seeds
from lcf_lightning.evaluation.tables import comparison_table, seeds_table

COMMAND = COMMANDS["compare"]


@dataclass(frozen=True)
class CompareOptions:
    """What to compare.

    Attributes:
        folders: Folders of evaluations.
        arm: The arm to compare, of two evaluations.
        seeds: Whether these are evaluations of one thing under several seeds.
        json: Print JSON instead of a table.
    """

    folders: list[str]
    arm: str = "message"
    seeds: bool = False
    json: bool = False


def compare(args: list[str]) -> None:
    """Print how one arm of two evaluations compares, or what several seeds have in common."""
    parser = COMMAND.parser()
    parser.add_argument("folders", type=str, nargs="+", help="Folders of evaluations.")
    parser.add_class_arguments(CompareOptions, skip={"folders", "seeds", "json"})
    parser.add_argument("--seeds", action="store_true", help="The folders are evaluations under several seeds.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = CompareOptions(**parser.parse_args(args).as_dict())
    if len(options.folders) < 2 or not (options.seeds or len(options.folders) == 2):
        raise SettingError(f"folders={options.folders} must be two evaluations, or with --seeds two or more.")
    answers = [_predictions(folder) for folder in options.folders]
    found: Mapping[str, Any]
    if options.seeds:
        found = seeds = summarise_seeds(answers)
        table = seeds_table(seeds, options.folders)
    else:
        found = comparisons = compare_reports(answers[0], answers[1], options.arm)
        table = comparison_table(comparisons, options.folders[0], options.folders[1], options.arm)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        Console().print(table)


def _predictions(folder: str) -> list[Prediction]:
    file = Path(folder) / PREDICTIONS
    if not file.is_file():
        inside = [str(found.parent) for found in sorted(Path(folder).glob(f"*/{PREDICTIONS}"))]
        meant = f"; did you mean {' or '.join(inside)}?" if inside else "."
        raise SettingError(f"folders: {folder!r} must be a folder of an evaluation; it has no {PREDICTIONS}{meant}")
    return read_predictions(file)
