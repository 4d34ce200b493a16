"""Evaluations of the same thing under several seeds: what holds whatever the seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.audit import paired_values, pairs_of
from lcf_lightning.evaluation.prediction import Prediction, by_arm
from lcf_lightning.evaluation.statistics import Estimate, over_seeds


class OverSeeds(TypedDict):
    """A figure of several runs.

    Attributes:
        mean: Mean over the seeds, and a bootstrap interval over seeds and examples (`over_seeds`).
        each: The figure of each run, in their order.
    """

    mean: Estimate
    each: list[float]


class Seeds(TypedDict):
    """Exact match of every arm, and of every comparison, that all runs have, on questions that need the sharer.

    Open-ended questions have no exact match: their loss in nats, and the nats of loss that one arm saves.
    """

    arms: dict[str, OverSeeds]
    comparisons: dict[str, OverSeeds]


def summarise_seeds(runs: Sequence[Sequence[Prediction]]) -> Seeds:
    """The answers of several runs, one a seed, as one summary. Each may have answered questions of its own.

    Raises:
        DataError: If there are fewer than two, or they share no arm.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} evaluation is given; seeds need at least two.")
    answers = [by_arm(run, needs_sharer=True) for run in runs]
    arms = [arm for arm in answers[0] if all(arm in run for run in answers)]
    if not arms:
        raise DataError("the evaluations share no arm.")
    scores = {arm: [[_score(row) for row in run[arm].values()] for run in answers] for arm in arms}
    gains = {
        name: [paired_values(run[first], run[second]) for run in answers]
        for name, (first, second) in pairs_of(arms).items()
    }
    return Seeds(arms=_over(scores), comparisons=_over(gains))


def _score(row: Prediction) -> float:
    return row.loss if row.exact_match is None else row.exact_match


def _over(values: dict[str, list[list[float]]]) -> dict[str, OverSeeds]:
    return {name: OverSeeds(mean=over_seeds(runs), each=[fmean(run) for run in runs]) for name, runs in values.items()}
