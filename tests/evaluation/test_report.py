from __future__ import annotations

import pytest
from rich.console import Console

from lcf_lightning.evaluation.arms import Answer
from lcf_lightning.evaluation.report import arms_table, summarise


def answer(id: str, arm: str, exact_match: float, needs_sharer: bool = True) -> Answer:
    return Answer(id, arm, needs_sharer, "tea", ("tea",), loss=2.0 - exact_match, exact_match=exact_match, f1=0.5)


def test_figures_are_means_per_arm_and_kind_of_question() -> None:
    answers = [answer(str(i), "message", float(i < 3)) for i in range(4)]
    answers += [answer("own", "message", 1.0, needs_sharer=False), answer("0", "mismatched", 0.0)]
    summary = summarise(answers)
    assert summary["arms"]["message"] == {"exact_match": 0.75, "f1": 0.5, "loss": 1.25, "n": 4}
    assert summary["arms"]["mismatched"]["n"] == 1
    assert summary["own_questions"] == {"message": {"exact_match": 1.0, "f1": 0.5, "loss": 1.0, "n": 1}}


def test_an_example_counts_once() -> None:
    """Seven examples on two ranks arrive as eight."""
    answers = [answer(str(i % 7), "message", float(i % 7 == 0)) for i in range(8)]
    figures = summarise(answers)["arms"]["message"]
    assert figures["n"] == 7
    assert figures["exact_match"] == pytest.approx(1 / 7)


def test_the_table_shows_every_arm() -> None:
    console = Console(record=True, width=120)
    console.print(
        arms_table(summarise([answer("0", "message", 1.0), answer("1", "own_context", 0.0, False)]), "runs/x")
    )
    text = console.export_text()
    assert "need the sharer" in text
    assert "receiver's own" in text
    assert all(word in text for word in ("runs/x", "message", "own_context", "1.000", "0.500"))
