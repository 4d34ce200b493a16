"""Does the message communicate, or has the adapter only tuned the receiver? (arXiv 2607.26773, 2608.04893)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TypedDict

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.nulls import Follow, follow
from lcf_lightning.evaluation.prediction import Prediction, by_arm, columns
from lcf_lightning.evaluation.statistics import (
    Comparison,
    Corrected,
    Estimate,
    compare,
    corrected,
    count_tests,
    estimate,
)

Rows = Mapping[str, Prediction]
"""One arm's answers by id."""


class ArmComparison(Corrected):
    """One arm against another, and which they are."""

    first: str
    second: str


class Audit(TypedDict):
    """The audit of an evaluation, over questions that need the sharer.

    Attributes:
        comparisons: By name, one arm less another.
        over_text: For each T2T-N the comparison of the message with the better of it and T2T-N + form.
        listening: Per arm, how far the first token's distribution moved from own context (Jensen–Shannon, nats).
        listening_gain: How much farther this example's message moves it than another's.
        follow: How often the receiver follows another example's message, and how often it would by chance.
        follow_holm: The follow rate's p-value, corrected for all tests of the audit.
        tests: How many these are: the family of Holm's correction. McNemar's and Wilcoxon's test of each comparison,
            and the permutation test of the follow rate.
    """

    comparisons: dict[str, ArmComparison]
    over_text: dict[str, str]
    listening: dict[str, Estimate]
    listening_gain: Estimate | None
    follow: Follow | None
    follow_holm: float | None
    tests: int


def audit(predictions: Iterable[Prediction]) -> Audit:
    """The audit of answers under any arms; an example that occurs twice counts once."""
    arms = by_arm(predictions, needs_sharer=True)
    pairs = {
        name: (one, other) for name, (one, other) in pairs_of(arms).items() if arms[one].keys() & arms[other].keys()
    }
    found = {name: paired(arms[first], arms[second]) for name, (first, second) in pairs.items()}
    followed = follow(arms.get("mismatched", {}), arms.get("own_context", {}))
    rows, follow_holm = corrected(found, *([followed["p"]] if followed else []))
    heard = {arm: [row.listening for row in rows.values() if row.listening is not None] for arm, rows in arms.items()}
    return Audit(
        comparisons={
            name: ArmComparison(first=pairs[name][0], second=pairs[name][1], **row) for name, row in rows.items()
        },
        over_text=over_text(arms, pairs),
        listening={arm: estimate(values) for arm, values in heard.items() if values},
        listening_gain=_listening_gain(arms.get("message", {}), arms.get("mismatched", {})),
        follow=followed,
        follow_holm=follow_holm[0] if follow_holm else None,
        tests=count_tests(found.values()) + len(follow_holm),
    )


def pairs_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What these arms say is of interest and can be compared, by name; that of controls first."""
    known = set(names)
    arms = sorted(map(find_arm, names), key=lambda arm: arm.family != "control")
    pairs = {name: (first, second) for arm in arms for name, first, second in arm.comparisons}
    return {name: pair for name, pair in pairs.items() if known.issuperset(pair)}


def over_text(arms: Mapping[str, Rows], pairs: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """For each text of the sharer's the comparison of the message with it or with it and form: the better one."""
    texts = {arm: [arm] for arm in arms if find_arm(arm).budget and not find_arm(arm).without_form}
    for arm in arms:
        plain = find_arm(arm).without_form
        if plain in texts:
            texts[plain].append(arm)
    names = {second: name for name, (first, second) in pairs.items() if first == "message"}
    better = {plain: max(several, key=lambda arm: _quality(arms[arm])) for plain, several in texts.items()}
    return {plain: names[arm] for plain, arm in better.items() if arm in names}


def _quality(rows: Rows) -> tuple[float, float, float]:
    """What makes an arm the better one: exact match, of equals F1, of equals the loss."""
    exact, f1, losses = columns(rows.values())
    return (fmean(exact) if exact else 0, fmean(f1) if f1 else 0, -fmean(losses))


def paired(first: Rows, second: Rows) -> Comparison:
    """Two arms over the ids that both have.

    Raises:
        DataError: If one of them has a score in one arm and none in the other.
    """
    ids = [id for id in first if id in second]
    unlike = [id for id in ids if (first[id].exact_match is None) != (second[id].exact_match is None)]
    if unlike:
        raise DataError(f"{len(unlike)} ids are scored under one arm and not under another, such as {unlike[0]!r:.80}.")
    sides = (columns(side[id] for id in ids) for side in (first, second))
    return compare(*zip(*sides, strict=True))


def _listening_gain(message: Rows, mismatched: Rows) -> Estimate | None:
    heard = [(row.listening, mismatched[id].listening) for id, row in message.items() if id in mismatched]
    gains = [own - other for own, other in heard if own is not None and other is not None]
    return estimate(gains) if gains else None
