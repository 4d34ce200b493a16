"""Does the message communicate, or has the adapter only tuned the receiver? (arXiv 2607.26773, 2608.04893)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from lcf_lightning.evaluation.answering import Answer, by_arm
from lcf_lightning.evaluation.answers import score
from lcf_lightning.evaluation.arms import text_budget
from lcf_lightning.evaluation.statistics import Comparison, Estimate, compare, estimate

COMPARISONS = {
    "content_attributable_gain": ("message", "mismatched"),
    "presence_effect": ("mismatched", "own_context"),
    "self_substitution_gap": ("message", "self"),
    "gain_over_zero": ("message", "zero"),
    "gain_over_noise": ("message", "noise"),
    "gain_over_own_context": ("message", "own_context"),
    "gap_to_full_context": ("full_context", "message"),
    "gain_over_sharer_alone": ("message", "sharer_alone"),
}
"""What is called how: the first arm's score less the second's, over the examples answered under both."""


class ArmComparison(Comparison):
    """One arm against another, and which they are."""

    first: str
    second: str


class Audit(TypedDict):
    """The audit of an evaluation, over questions that need the sharer.

    Attributes:
        comparisons: By name, one arm less another.
        listening: Per arm, how far the first token's distribution moved from own context (Jensen–Shannon, nats).
        follow_rate: How often the receiver gives the other example's answer under its message, over the examples
            whose own answer is another and whose partner's message can hold an answer (its question needs the sharer);
            null where there are none.
        follow_n: How many those are.
    """

    comparisons: dict[str, ArmComparison]
    listening: dict[str, Estimate]
    follow_rate: Estimate | None
    follow_n: int


def audit(answers: Iterable[Answer]) -> Audit:
    """The audit of answers under any arms; an example that occurs twice counts once."""
    arms = by_arm(answers, needs_sharer=True)
    pairs = COMPARISONS | {f"gain_over_{arm}": ("message", arm) for arm in arms if text_budget(arm)}
    followed = [_followed(answer) for answer in arms.get("mismatched", {}).values() if _tells_apart(answer)]
    return Audit(
        comparisons={
            name: ArmComparison(first=one, second=other, **paired(arms[one], arms[other]))
            for name, (one, other) in pairs.items()
            if {one, other} <= set(arms)
        },
        listening={
            arm: estimate([answer.listening for answer in rows.values() if answer.listening is not None])
            for arm, rows in arms.items()
            if arm != "sharer_alone"
        },
        follow_rate=estimate(followed) if followed else None,
        follow_n=len(followed),
    )


def paired(first: dict[str, Answer], second: dict[str, Answer]) -> Comparison:
    """Two arms over the ids that both have."""
    ids = [id for id in first if id in second]
    one, other = [first[id] for id in ids], [second[id] for id in ids]
    return compare(
        [answer.exact_match for answer in one],
        [answer.exact_match for answer in other],
        [answer.f1 for answer in one],
        [answer.f1 for answer in other],
    )


def _tells_apart(answer: Answer) -> bool:
    """Whether the partner's message can hold an answer, and none of them is the example's own."""
    shared = any(score(theirs, answer.answers).exact_match for theirs in answer.partner_answers)
    return bool(answer.partner_answers) and answer.partner_needs_sharer and not shared


def _followed(answer: Answer) -> float:
    return score(answer.prediction, answer.partner_answers).exact_match
