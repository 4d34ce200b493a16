"""Evaluations of the same thing under several seeds: what holds whatever the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypedDict

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.arms import is_known
from lcf_lightning.evaluation.audit import Rows, over_text, pairs_of
from lcf_lightning.evaluation.prediction import Prediction, by_arm
from lcf_lightning.evaluation.statistics import Estimate, over_seeds


class OverSeeds(TypedDict):
    """A figure of several runs.

    Attributes:
        mean: Mean over the seeds, and a bootstrap interval over seeds and examples (`over_seeds`).
        each: The figure of each run, in their order.
        n: How many examples each run has it of.
    """

    mean: Estimate
    each: list[float]
    n: list[int]


class Seeds(TypedDict):
    """What several runs have in common, on questions that need the sharer.

    Attributes:
        score: ``exact match``, of the questions that have one; or, where none has, ``loss, nats``.
        arms: That of every arm that all runs have.
        comparisons: By how much one arm is better than another: for the loss, how many nats it saves.
    """

    score: str
    arms: dict[str, OverSeeds]
    comparisons: dict[str, OverSeeds]


def summarise_seeds(runs: Sequence[Sequence[Prediction]]) -> Seeds:
    """The answers of several runs, one a seed, as one summary. Each may have answered questions of its own.

    Raises:
        DataError: If there are fewer than two, two are the same, or they share no arm.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} evaluation is given; seeds need at least two.")
    if any(_alike(run, other) for place, run in enumerate(runs) for other in runs[:place]):
        raise DataError("two of the evaluations hold the same answers; seeds must be different runs.")
    answers = [by_arm(run, needs_sharer=True) for run in runs]
    arms = [arm for arm in answers[0] if all(arm in run for run in answers)]
    if not arms:
        raise DataError("the evaluations share no arm.")
    matched = any(row.exact_match is not None for run in answers for arm in arms for row in run[arm].values())
    scores = [{arm: _scores(run[arm], matched) for arm in arms} for run in answers]
    known = [arm for arm in arms if is_known(arm)]  # not one of their own that was not imported
    pairs = [_pairs({arm: run[arm] for arm in known}) for run in answers]
    gains = {
        name: [
            _gains(run[of_run[name][0]], run[of_run[name][1]], matched)
            for run, of_run in zip(scores, pairs, strict=True)
        ]
        for name in pairs[0]
        if all(name in of_run for of_run in pairs)
    }
    return Seeds(
        score="exact match" if matched else "loss, nats",
        arms={arm: _over([run[arm] for run in scores]) for arm in arms if all(run[arm] for run in scores)},
        comparisons={name: _over(values) for name, values in gains.items() if all(values)},
    )


def _alike(run: Sequence[Prediction], other: Sequence[Prediction]) -> bool:
    """Whether two evaluations answer all that both were asked alike, to the last bit of the loss."""
    losses = [{(row.arm, row.id): row.loss for row in rows} for rows in (run, other)]
    common = losses[0].keys() & losses[1].keys()
    return bool(common) and all(losses[0][key] == losses[1][key] for key in common)


def _pairs(arms: Mapping[str, Rows]) -> dict[str, tuple[str, str]]:
    """What is compared in one run; which text is the better one may differ from run to run."""
    pairs = pairs_of(arms)
    better = {f"gain_over_{text}_at_its_better": pairs[name] for text, name in over_text(arms, pairs).items()}
    return pairs | better


def _scores(rows: Rows, matched: bool) -> dict[str, float]:
    """By id, the exact match of those that have one; or the loss of all."""
    if not matched:
        return {id: row.loss for id, row in rows.items()}
    return {id: row.exact_match for id, row in rows.items() if row.exact_match is not None}


def _gains(first: Mapping[str, float], second: Mapping[str, float], matched: bool) -> dict[str, float]:
    """By how much the first is better; a smaller loss is."""
    sign = 1 if matched else -1
    return {id: sign * (score - second[id]) for id, score in first.items() if id in second}


def _over(runs: Sequence[Mapping[str, float]]) -> OverSeeds:
    same = all(run.keys() == runs[0].keys() for run in runs)
    values = [[run[id] for id in (runs[0] if same else run)] for run in runs]
    return OverSeeds(mean=over_seeds(values, same), each=[fmean(run) for run in values], n=list(map(len, values)))
