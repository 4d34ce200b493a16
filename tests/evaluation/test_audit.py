from __future__ import annotations

import pytest

from lcf_lightning.evaluation.audit import audit
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
    found = audit(rows)
    assert found["follow_n"] == 3
    assert found["follow_rate"] is not None
    assert found["follow_rate"]["value"] == pytest.approx(2 / 3)


def test_without_a_mismatched_arm_nothing_is_followed() -> None:
    found = audit([answer("1", "message", 1.0, listening=0.3), answer("2", "message", 1.0, listening=0.5)])
    assert (found["follow_rate"], found["follow_n"]) == (None, 0)
    assert found["listening"]["message"]["value"] == pytest.approx(0.4)
    assert found["comparisons"] == {}
