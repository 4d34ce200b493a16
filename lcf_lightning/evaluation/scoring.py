"""Scores of an answer: exact match and F1 with SQuAD's normalisation."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from torchmetrics.functional.text import squad

_CLOSED = ("yes", "no", "noanswer")


class Scores(NamedTuple):
    """Scores of one answer, each in [0, 1]."""

    exact_match: float
    f1: float


def score(prediction: str, answers: Sequence[str]) -> Scores:
    """Exact match and F1 against the best of the accepted answers (Rajpurkar et al. 2016).

    As in HotpotQA's own script, a prediction or answer that is *yes*, *no* or *noanswer* gets no partial credit.
    """
    result = squad(
        {"prediction_text": prediction, "id": "0"},
        {"answers": {"answer_start": [0] * len(answers), "text": list(answers)}, "id": "0"},
    )
    exact_match, f1 = float(result["exact_match"]) / 100, float(result["f1"]) / 100
    closed = any(text.strip().lower().rstrip(".") in _CLOSED for text in (prediction, *answers))
    return Scores(exact_match, exact_match if closed else f1)


def normalised(text: str) -> str:
    """``text`` as `score` compares it: no capitals, punctuation, articles or doubled blanks."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())
