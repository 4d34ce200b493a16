"""Paired statistics over examples, through scipy: what is chance and what is not."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 10_000


class Estimate(TypedDict):
    """A mean with its 95 % interval (percentile bootstrap over examples)."""

    value: float
    low: float
    high: float


class Comparison(TypedDict):
    """One arm against another, over the same examples.

    Attributes:
        n: Examples answered under both.
        gain: Mean difference in exact match.
        gain_f1: Mean difference in F1.
        only_first: Examples that only the first arm answers exactly.
        only_second: Examples that only the second arm answers exactly.
        mcnemar_p: Exact one-sided McNemar test that the first arm is no better.
        wilcoxon_p: One-sided Wilcoxon signed-rank test of F1, likewise.
    """

    n: int
    gain: Estimate
    gain_f1: Estimate
    only_first: int
    only_second: int
    mcnemar_p: float
    wilcoxon_p: float


def estimate(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean and 95 % percentile bootstrap interval; the interval of one value or of equal ones is the value."""
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2 or np.ptp(sample) == 0:
        return Estimate(value=mean, low=mean, high=mean)
    interval = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, batch=1_000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(value=mean, low=float(interval.low), high=float(interval.high))


def format_estimate(estimate: Estimate, signed: bool = False) -> str:
    """An estimate and its interval as people read them."""
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def compare(first: ArrayLike, second: ArrayLike, first_f1: ArrayLike, second_f1: ArrayLike) -> Comparison:
    """Exact match and F1 of two arms, paired by position: is the first better?"""
    gain = np.subtract(first, second)
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    gain_f1 = np.subtract(first_f1, second_f1)
    discordant = wins + losses
    return Comparison(
        n=len(gain),
        gain=estimate(gain),
        gain_f1=estimate(gain_f1),
        only_first=wins,
        only_second=losses,
        mcnemar_p=float(stats.binomtest(wins, discordant, 0.5, alternative="greater").pvalue) if discordant else 1.0,
        wilcoxon_p=float(stats.wilcoxon(gain_f1, alternative="greater").pvalue) if gain_f1.any() else 1.0,
    )
