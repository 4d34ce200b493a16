"""What an evaluation comes to, in a word: does the pair communicate?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from lcf_lightning.evaluation.audit import Rows, paired
from lcf_lightning.evaluation.prediction import Prediction, by_arm
from lcf_lightning.evaluation.statistics import Estimate, format_estimate

VERDICTS = {
    "communicates": "this example's message helps, another example's does not help as much",
    "tunes only": "a message helps, and this example's is not shown to help more than another's",
    "cannot read": "no message is shown to help, nor more to read: these questions cannot show communication",
    "does not communicate": "no message is shown to help",
}
"""By verdict, what it means."""
_TOLD = ("full_context", "full_context_form", "sharer_alone")  # what answers that knows all there is to be told


class Verdict(TypedDict):
    """What the answers to questions that need the sharer come to.

    Attributes:
        verdict: One of `VERDICTS`.
        gain: The content-attributable gain, message less mismatched, with its 95 % interval.
        score: What the gain is counted in: ``exact match``, or ``nats of loss`` where questions are open-ended.
        n: Questions that it is of.
    """

    verdict: str
    gain: Estimate
    score: str
    n: int


def judge(answers: Iterable[Prediction]) -> Verdict | None:
    """The verdict on some answers; None unless some questions were answered with both messages and without one.

    It is ``communicates`` where the intervals of the gains over another's message and over none are above 0, else
    ``tunes only`` where a message helps at all, else ``cannot read`` where the receiver that reads all the text is no
    better than with its own, or, where both models read the same text, the sharer alone no better than the receiver.
    """
    arms = by_arm(answers, needs_sharer=True)
    message, mismatched, own = (arms.get(name, {}) for name in ("message", "mismatched", "own_context"))
    found = _gain(message, mismatched)
    helps = _above(message, own)
    if found is None or helps is None:
        return None
    gain, score, n = found
    told = [better for name in _TOLD if (better := _above(arms.get(name, {}), own)) is not None]
    if gain["low"] > 0 and helps:
        verdict = "communicates"
    elif helps or _above(mismatched, own):
        verdict = "tunes only"
    else:
        verdict = "cannot read" if told and not any(told) else "does not communicate"
    return Verdict(verdict=verdict, gain=gain, score=score, n=n)


def in_words(found: Verdict) -> str:
    """Two lines: the gain, and the verdict with what it means."""
    gain = f"{found['score']} {format_estimate(found['gain'], signed=True)}"
    return f"Content-attributable gain (message − mismatched, n = {found['n']}): {gain}.\nVerdict: {meaning(found)}."


def meaning(found: Verdict) -> str:
    """The verdict, and what it means."""
    return f"{found['verdict']}: {VERDICTS[found['verdict']]}"


def _gain(first: Rows, second: Rows) -> tuple[Estimate, str, int] | None:
    """One arm less another, over questions that both have answered."""
    if not first.keys() & second.keys():
        return None
    row = paired(first, second)
    if row["gain"] is None:
        return row["gain_loss"], "nats of loss", row["n"]
    return row["gain"], "exact match", row["n"]


def _above(first: Rows, second: Rows) -> bool | None:
    """Whether one arm is better than another beyond chance; None where that cannot be told."""
    found = _gain(first, second)
    return None if found is None else found[0]["low"] > 0
