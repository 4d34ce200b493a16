"""``compare``: two evaluations against each other, paired by question."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lcf_lightning.cli.commands import Command
from lcf_lightning.cli.evaluate import PREDICTIONS
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.compare import compare_reports
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.report import comparison_table


@dataclass(frozen=True)
class CompareOptions:
    """What to compare.

    Attributes:
        first: Folder of an evaluation.
        second: Folder of another.
        arm: The arm to compare.
        json: Print JSON instead of a table.
    """

    first: str
    second: str
    arm: str = "message"
    json: bool = False


def compare(args: list[str]) -> None:
    """Print how one arm of two evaluations compares: difference, discordant questions, exact McNemar."""
    parser = COMMAND.parser()
    parser.add_argument("first", type=str, help="Folder of an evaluation.")
    parser.add_argument("second", type=str, help="Folder of another.")
    parser.add_class_arguments(CompareOptions, skip={"first", "second", "json"})
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = CompareOptions(**parser.parse_args(args).as_dict())
    first, second = _predictions("first", options.first), _predictions("second", options.second)
    comparisons = compare_reports(first, second, options.arm)
    if options.json:
        sys.stdout.write(json.dumps(comparisons) + "\n")
    else:
        Console().print(comparison_table(comparisons, options.first, options.second, options.arm))


def _predictions(setting: str, location: str) -> list[Prediction]:
    file = Path(location) / PREDICTIONS
    if not file.is_file():
        raise SettingError(f"{setting}={location!r} must be a folder of an evaluation; it has no {PREDICTIONS}.")
    return read_predictions(file)


COMMAND = Command(
    name="compare",
    summary="Says which of two evaluations is better, question by question",
    options=(
        ("FIRST SECOND", "folders of two evaluations; is the first better?"),
        ("--arm ARM", "the arm to compare (default: message)"),
        ("--json", "JSON instead of a table"),
    ),
    example="runs/quickstart_shared_c2c/evaluation runs/quickstart_shared/evaluation",
    run=compare,
)
