"""What fuzzers have found, kept: inputs that once ended in a foreign error, cost far too much, or were taken.

Those of adapters stand in tests/adapter/test_damage.py, of checkpoints in tests/test_checkpoint_damage.py, of messages
in tests/message/, of kept prefills in tests/models/test_store_damage.py.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lcf_lightning.cli.compare import compare
from lcf_lightning.cli.export import scores_of
from lcf_lightning.errors import AdapterFileError, DataError
from lcf_lightning.evaluation.compare import compare_reports
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.evaluation.report import build_report
from lcf_lightning.evaluation.tables import comparison_table
from tests.fuzz.reports import answers


def altered(folder: Path, place: int = 1, **fields: Any) -> Path:
    """A predictions file of which one answer, of the message arm, is another."""
    rows = [asdict(row) for row in answers(0)]
    rows[place] |= fields
    file = folder / "predictions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("answers", []), ("exact_match", 1e308), ("exact_match", math.nan), ("exact_match", -1.0), ("f1", None),
        ("f1", 2.0), ("loss", 10**400), ("listening", -1.0), ("choices", -1), ("choices", 10**30),
        ("prediction", "\ud800"), ("id", "\ud800"),
    ],
)  # fmt: skip
def test_an_answer_that_no_evaluation_gives_is_named(tmp_path: Path, field: str, value: Any) -> None:
    file = altered(tmp_path, **{field: value})
    with pytest.raises(DataError, match=r"predictions.jsonl, line 2 is not an answer of this version: ") as refused:
        read_predictions(file)
    assert len(str(refused.value)) < 500


def test_scores_that_one_arm_has_and_another_has_not_are_refused(tmp_path: Path) -> None:
    """It was an error of numpy's, in `compare` and in a report."""
    found = read_predictions(altered(tmp_path, exact_match=None, f1=None))
    for use in (lambda: build_report(found, None, {}), lambda: compare_reports(found, answers(1), "message")):
        with pytest.raises(DataError, match="1 ids are scored under one arm and not under another, such as '0'"):
            use()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_answer(tmp_path: Path, value: float) -> None:
    """A model may give one."""
    found = read_predictions(altered(tmp_path, loss=value))
    assert not math.isfinite(build_report(found, None, {})["arms"]["message"]["loss"])
    assert compare_reports(found, answers(1), "message")["all"]["n"] > 0


def test_a_name_from_anywhere_is_no_markup_and_moves_no_cursor(tmp_path: Path) -> None:
    """``[/x]`` was an error of rich's."""
    rows = [[asdict(row) | {"benchmark": "[/x]\x1b[2J[red]"} for row in answers(seed)] for seed in (0, 1)]
    for folder, table in zip(("a", "b"), rows, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "predictions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table))
    first, second = (read_predictions(tmp_path / folder / "predictions.jsonl") for folder in ("a", "b"))
    shown = io.StringIO()
    Console(file=shown, width=200).print(comparison_table(compare_reports(first, second, "message"), "[/a]", "b", "m"))
    assert "[/x]\N{REPLACEMENT CHARACTER}[2J[red]" in shown.getvalue()
    assert "[/a]" in shown.getvalue()
    compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_numbers_of_an_old_summary_that_are_not_finite_do_not_block_an_export(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    arms = {"message": {"exact_match": 0.5, "f1": 0.5, "loss": math.nan, "n": 8},
            "mismatched": {"exact_match": math.nan, "f1": None, "loss": math.inf, "n": 8}}  # fmt: skip
    summary.write_text(json.dumps({"steps": 4, "arms": arms, "speedup": {"speedup/ttft": math.nan}}))
    found = scores_of(summary, 4)
    assert found["message"] == {"exact_match": 0.5, "f1": 0.5, "loss": None, "n": 8}
    assert found["mismatched"]["exact_match"] is None
    summary.write_text("[" * 5000)
    with pytest.raises(AdapterFileError, match="summary.json is damaged: .* Move it away to export without"):
        scores_of(summary, 4)
