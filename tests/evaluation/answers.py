"""Answers made up for tests of what is computed from answers."""

from __future__ import annotations

from typing import Any

from lcf_lightning.evaluation.prediction import Prediction


def answer(id: str, arm: str, exact_match: float | None, **changes: Any) -> Prediction:
    """An answer that is right or wrong, or, of None, to an open-ended question; anything else can be changed."""
    given = {
        "needs_sharer": True,
        "prediction": "tea" if exact_match else "no idea",
        "answers": ("tea",),
        "loss": 1.0,
        "f1": exact_match,
        "listening": 0.1,
        "partner_answers": ("coffee",) if arm == "mismatched" else (),
    }
    return Prediction(id=id, arm=arm, exact_match=exact_match, **{**given, **changes})
