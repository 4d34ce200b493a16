"""Does the message communicate, or has the adapter only tuned the receiver? (arXiv 2607.26773, 2608.04893)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.prediction import Prediction, by_arm
from lcf_lightning.evaluation.scoring import score
from lcf_lightning.evaluation.statistics import Comparison, Estimate, compare, estimate


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


def audit(predictions: Iterable[Prediction]) -> Audit:
    """The audit of answers under any arms; an example that occurs twice counts once."""
    arms = by_arm(predictions, needs_sharer=True)
    followed = [_followed(row) for row in arms.get("mismatched", {}).values() if _tells_apart(row)]
    heard = {arm: [row.listening for row in rows.values() if row.listening is not None] for arm, rows in arms.items()}
    return Audit(
        comparisons={
            name: ArmComparison(first=one, second=other, **paired(arms[one], arms[other]))
            for name, (one, other) in _comparisons(list(arms)).items()
            if {one, other} <= set(arms)
        },
        listening={arm: estimate(values) for arm, values in heard.items() if values},
        follow_rate=estimate(followed) if followed else None,
        follow_n=len(followed),
    )


def _comparisons(names: list[str]) -> dict[str, tuple[str, str]]:
    """What these arms say is of interest, that of controls first."""
    arms = sorted(map(find_arm, names), key=lambda arm: arm.family != "control")
    return {name: (first, second) for arm in arms for name, first, second in arm.comparisons}


def paired(first: dict[str, Prediction], second: dict[str, Prediction]) -> Comparison:
    """Two arms over the ids that both have."""
    ids = [id for id in first if id in second]
    one, other = [first[id] for id in ids], [second[id] for id in ids]
    return compare(
        [answer.exact_match for answer in one],
        [answer.exact_match for answer in other],
        [answer.f1 for answer in one],
        [answer.f1 for answer in other],
    )


def _tells_apart(answer: Prediction) -> bool:
    """Whether the partner's message can hold an answer, and none of them is the example's own."""
    shared = any(score(theirs, answer.answers).exact_match for theirs in answer.partner_answers)
    return bool(answer.partner_answers) and answer.partner_needs_sharer and not shared


def _followed(answer: Prediction) -> float:
    return score(answer.prediction, answer.partner_answers).exact_match
