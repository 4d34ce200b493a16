"""``compare``: two evaluations against each other, paired by question."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from lcf_lightning.cli.evaluate import PREDICTIONS
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.compare import compare_reports
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.report import comparison_table


def compare(args: list[str]) -> None:
    """Print how one arm of two evaluations compares: difference, discordant questions, exact McNemar."""
    parser = ArgumentParser(prog="lcf_lightning compare", description=compare.__doc__)
    parser.add_argument("first", type=str, help="Folder of an evaluation.")
    parser.add_argument("second", type=str, help="Folder of another.")
    parser.add_argument("--arm", type=str, default="message", help="The arm to compare.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    config = parser.parse_args(args)
    found = compare_reports(_answers("first", config.first), _answers("second", config.second), config.arm)
    if config.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        Console().print(comparison_table(found, config.first, config.second, config.arm))


def _answers(setting: str, location: str) -> list[Prediction]:
    file = Path(location) / PREDICTIONS
    if not file.is_file():
        raise SettingError(f"{setting}={location!r} must be a folder of an evaluation; it has no {PREDICTIONS}.")
    return read_predictions(file)
