from __future__ import annotations

import pytest
from scipy.stats import binomtest

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.compare import compare_reports
from tests.evaluation.answers import answer


def test_answers_are_paired_by_id_whatever_their_order() -> None:
    first = [answer(f"{i}", "message", float(i % 4 != 0)) for i in range(40)]
    second = [answer(f"{i}", "message", float(i % 2 == 0)) for i in reversed(range(40))]
    found = compare_reports(first, second, "message")["all"]
    # First is right on 1, 2, 3 of every four, second on 0 and 2.
    assert (found["n"], found["only_first"], found["only_second"]) == (40, 20, 10)
    assert found["gain"]["value"] == pytest.approx(0.25)
    assert found["mcnemar_p"] == pytest.approx(binomtest(20, 30, alternative="greater").pvalue)
    assert found["wilcoxon_p"] < (found["mcnemar_p"] or 0)
    assert found["mcnemar_holm"] == pytest.approx(2 * found["wilcoxon_p"])  # the family's other test
    back = compare_reports(second, first, "message")["all"]
    assert back["gain"]["value"] == pytest.approx(-0.25)
    assert back["mcnemar_p"] > 0.9


def test_every_benchmark_is_compared_too() -> None:
    rows = {
        name: [answer(f"{name}/{i}", "message", score, benchmark=name) for i in range(5)]
        for name, score in (("arc", 1.0), ("mmlu", 0.0))
    }
    other = [answer(row.id, "message", 0.0, benchmark=row.benchmark) for part in rows.values() for row in part]
    found = compare_reports(rows["arc"] + rows["mmlu"], other, "message")
    assert {name: (row["n"], row["gain"]["value"]) for name, row in found.items()} == {
        "all": (10, 0.5), "arc": (5, 1.0), "mmlu": (5, 0.0)
    }  # fmt: skip


def test_other_questions_and_missing_arms_are_refused() -> None:
    first = [answer("a", "message", 1.0), answer("b", "message", 1.0), answer("a", "zero", 0.0)]
    with pytest.raises(DataError, match="1 only in the first, 1 only in the second, such as 'b'"):
        compare_reports(first, [answer("a", "message", 1.0), answer("c", "message", 1.0)], "message")
    with pytest.raises(DataError, match="arm='noise' must be one that both evaluations have: message, zero"):
        compare_reports(first, first, "noise")
    with pytest.raises(DataError, match="1 ids name another question or answer .*, such as 'b'"):
        compare_reports(first, [answer("a", "message", 1.0), answer("b", "message", 1.0, answers=("B",))], "message")
    with pytest.raises(DataError, match="they share none"):
        compare_reports(first, [answer("a", "self", 1.0)], "message")
    one, other, old = ([answer("a", "message", 1.0, example=digest)] for digest in ("x", "y", ""))
    with pytest.raises(DataError, match="1 ids name another question or answer"):  # of one id, and answered alike
        compare_reports(one, other, "message")
    assert compare_reports(one, old, "message")["all"]["n"] == 1  # 0.1.0 kept no digest


def test_questions_that_the_receiver_can_answer_alone_are_compared_apart() -> None:
    first = [answer("a", "message", 1.0), answer("own", "message", 1.0, needs_sharer=False)]
    second = [answer("a", "message", 0.0), answer("own", "message", 1.0, needs_sharer=False)]
    found = compare_reports(first, second, "message")
    gains = {name: (row["n"], row["gain"] and row["gain"]["value"]) for name, row in found.items()}
    assert gains == {"all": (1, 1.0), "own questions": (1, 0.0)}
