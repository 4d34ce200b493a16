from __future__ import annotations

import pytest

from lcf_lightning.evaluation.scoring import score


@pytest.mark.parametrize(
    ("prediction", "answers", "exact_match", "f1"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1.0, 1.0),
        ("Paris, France", ["London", "Paris"], 0.0, 2 / 3),  # the best of the accepted answers
        ("", ["tea"], 0.0, 0.0),
        ("yes it is", ["yes"], 0.0, 0.0),  # HotpotQA: no partial credit for yes and no
        ("Yes.", ["yes"], 1.0, 1.0),
        ("no", ["no idea"], 0.0, 0.0),
        ("a cat sat", ["cat sat down"], 0.0, 0.8),
    ],
)
def test_scores_are_squads(prediction: str, answers: list[str], exact_match: float, f1: float) -> None:
    scores = score(prediction, answers)
    assert scores.exact_match == exact_match
    assert scores.f1 == pytest.approx(f1)
