from __future__ import annotations

import pytest

from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.verdict import VERDICTS, in_words, judge
from tests.evaluation.answers import answer


def answers(**right: int) -> list[Prediction]:
    """Of each arm the first so many of 20 answers are right."""
    return [answer(str(n), arm, float(n < count)) for arm, count in right.items() for n in range(20)]


@pytest.mark.parametrize(
    ("verdict", "right"),
    [
        ("communicates", {"own_context": 0, "message": 18, "mismatched": 2, "full_context": 20}),
        ("communicates", {"own_context": 0, "message": 18, "mismatched": 2, "full_context": 0}),
        ("tunes only", {"own_context": 0, "message": 12, "mismatched": 12, "full_context": 20}),
        ("tunes only", {"own_context": 0, "message": 12, "mismatched": 12, "full_context": 0}),
        ("cannot read", {"own_context": 3, "message": 3, "mismatched": 3, "full_context": 3}),
        ("cannot read", {"own_context": 3, "message": 3, "mismatched": 3, "sharer_alone": 3}),
        ("does not communicate", {"own_context": 0, "message": 0, "mismatched": 0, "full_context": 20}),
        ("does not communicate", {"own_context": 3, "message": 3, "mismatched": 3}),
        ("does not communicate", {"own_context": 12, "message": 5, "mismatched": 0, "full_context": 20}),
        (
            "does not communicate",
            {"own_context": 0, "message": 0, "mismatched": 0, "full_context": 0, "full_context_form": 20},
        ),
    ],
)
def test_the_verdict_in_a_word(verdict: str, right: dict[str, int]) -> None:
    found = judge(answers(**right))
    assert found is not None
    assert found["verdict"] == verdict
    assert found["n"] == 20
    assert found["gain"]["value"] == pytest.approx((right["message"] - right["mismatched"]) / 20)
    first, second = in_words(found).splitlines()
    assert first.startswith("Content-attributable gain (message − mismatched, n = 20): exact match +")
    assert second == f"Verdict: {verdict}: {VERDICTS[verdict]}."


def test_open_ended_answers_are_judged_by_their_loss() -> None:
    losses = {"own_context": 3.0, "message": 1.0, "mismatched": 3.0}
    rows = [answer(str(n), arm, None, loss=loss) for arm, loss in losses.items() for n in range(9)]
    found = judge(rows)
    assert found is not None
    assert (found["verdict"], found["score"], found["gain"]["value"]) == ("communicates", "nats of loss", 2.0)


def test_without_both_messages_and_an_answer_without_one_there_is_none() -> None:
    assert judge(answers(message=12, mismatched=2)) is None
    assert judge(answers(own_context=3, message=8)) is None
    own = [answer(str(n), arm, 1.0, needs_sharer=False) for arm in ("message", "mismatched") for n in range(9)]
    assert judge(own) is None
