from __future__ import annotations

from typing import Any

import pytest

from lcf_lightning.evaluation.audit import audit
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.report import build_report, summarise
from tests.evaluation.answers import answer


def test_gains_are_differences_over_the_same_examples() -> None:
    rows = [answer(str(i), "message", float(i < 8)) for i in range(10)]
    rows += [answer(str(i), "mismatched", float(i < 3)) for i in range(10)]
    rows += [answer(str(i), "own_context", float(i < 1)) for i in range(10)]
    rows += [answer(str(i), "t2t_50", float(i < 9)) for i in range(5, 10)]  # only half of them
    found = audit(rows)["comparisons"]
    assert found["content_attributable_gain"]["gain"]["value"] == pytest.approx(0.5)
    assert found["presence_effect"]["gain"]["value"] == pytest.approx(0.2)
    assert (found["gain_over_t2t_50"]["n"], found["gain_over_t2t_50"]["only_second"]) == (5, 1)
    assert (found["gain_over_t2t_50"]["first"], found["gain_over_t2t_50"]["second"]) == ("message", "t2t_50")
    assert "self_substitution_gap" not in found  # that arm was not run


def test_questions_that_the_receiver_can_answer_alone_are_left_out() -> None:
    rows = [answer("a", arm, float(arm == "message")) for arm in ("message", "mismatched")]
    rows += [answer("b", arm, 1.0, needs_sharer=False) for arm in ("message", "mismatched")]
    found = audit(rows * 2)  # and what occurs twice counts once
    assert found["comparisons"]["content_attributable_gain"]["n"] == 1
    assert found["comparisons"]["content_attributable_gain"]["gain"]["value"] == 1


def test_follow_rate_counts_the_other_examples_answer() -> None:
    rows = [
        answer("1", "mismatched", 0.0, prediction="Coffee.", partner_answers=("coffee",)),
        answer("2", "mismatched", 0.0, prediction="milk", partner_answers=("coffee", "cocoa")),
        answer("3", "mismatched", 0.0, prediction="cocoa", partner_answers=("coffee", "cocoa")),
        answer("4", "mismatched", 1.0, prediction="tea", partner_answers=("tea",)),  # cannot tell whose it is
    ]
    rows.append(  # a partner whose sharer never read its answer
        answer("5", "mismatched", 0.0, partner_answers=("coffee",), partner_needs_sharer=False)
    )
    found = audit(rows)["follow"]
    assert found is not None
    assert found["n"] == 3
    assert found["rate"]["value"] == pytest.approx(2 / 3)


def test_without_a_mismatched_arm_nothing_is_followed() -> None:
    found = audit([answer("1", "message", 1.0, listening=0.3), answer("2", "message", 1.0, listening=0.5)])
    assert (found["follow"], found["follow_holm"], found["listening_gain"]) == (None, None, None)
    assert found["listening"]["message"]["value"] == pytest.approx(0.4)
    assert found["comparisons"] == {}


def rows_of(arm: str, right: int, **changes: Any) -> list[Prediction]:
    return [answer(str(i), arm, float(i < right), **changes) for i in range(20)]


def test_a_message_is_compared_with_the_better_text() -> None:
    """Of a text and the same with form, whichever answers more: no comparison may lean on an untuned baseline."""
    rows = [*rows_of("message", 15), *rows_of("t2t_50", 4), *rows_of("t2t_50_form", 12)]
    rows += [*rows_of("t2t_200", 16), *rows_of("t2t_200_form", 11), *rows_of("full_context", 18)]
    rows += [*rows_of("full_context_form", 19), *rows_of("t2t_7_form", 3)]
    found = audit(rows)
    assert found["over_text"] == {"t2t_50": "gain_over_t2t_50_form", "t2t_200": "gain_over_t2t_200"}
    gains = {name: found["comparisons"][name]["gain"] for name in (*found["over_text"].values(),)}
    assert [gain and gain["value"] for gain in gains.values()] == [pytest.approx(0.15), pytest.approx(-0.05)]
    ceiling = found["comparisons"]["gap_to_full_context_form"]
    assert (ceiling["first"], ceiling["second"], ceiling["only_first"]) == ("full_context_form", "message", 4)


def test_the_family_of_a_report_is_all_that_it_tests() -> None:
    rows = [*rows_of("message", 15), *rows_of("mismatched", 5), *rows_of("own_context", 1)]
    found = audit(rows)
    assert found["tests"] == 3 * 2 + 1  # three differences, two tests each, and the follow rate's
    gain = found["comparisons"]["content_attributable_gain"]
    assert gain["mcnemar_p"] is not None
    assert gain["mcnemar_holm"] is not None
    assert gain["mcnemar_p"] * 3 < gain["mcnemar_holm"] <= gain["mcnemar_p"] * 7


def test_arms_without_a_common_question_are_not_compared() -> None:
    rows = [answer("a", "message", 1.0), answer("b", "mismatched", 0.0)]
    assert audit(rows)["comparisons"] == {}


def test_n_counts_what_was_scored() -> None:
    rows = [answer(str(i), arm, 1.0 if i < 3 else None) for i in range(9) for arm in ("message", "mismatched")]
    assert audit(rows)["comparisons"]["content_attributable_gain"]["n"] == 3
    assert build_report(rows, None, {})["arms"]["message"]["n"] == summarise(rows)["arms"]["message"]["n"] == 3


def test_listening_stands_beside_that_of_another_message() -> None:
    rows = [*rows_of("message", 15, listening=0.6), *rows_of("mismatched", 5, listening=0.55)]
    found = audit([*rows, *rows_of("sharer_alone", 9, listening=None)])
    assert found["listening_gain"] is not None
    assert found["listening_gain"]["value"] == pytest.approx(0.05)


def test_open_ended_questions_are_compared_by_their_loss() -> None:
    rows = [answer(str(i), arm, None, loss=loss + i / 10) for i in range(9)
            for arm, loss in (("message", 1.0), ("mismatched", 1.5))]  # fmt: skip
    gain = audit(rows)["comparisons"]["content_attributable_gain"]
    assert (gain["gain"], gain["gain_f1"], gain["mcnemar_holm"]) == (None, None, None)
    assert gain["gain_loss"]["value"] == pytest.approx(0.5)
    assert gain["wilcoxon_p"] == pytest.approx(1 / 2**9)
