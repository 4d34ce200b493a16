"""Statistics over examples, through scipy: what is chance and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 10_000
_BATCH = 500  # resamples at once, so that memory stays small


class Estimate(TypedDict):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(TypedDict):
    """One arm against another, over the same examples.

    Attributes:
        n: Examples scored under both: those with an exact match, or all where none has one.
        gain: Mean difference in exact match; null where answers are open-ended.
        gain_f1: Mean difference in F1, likewise.
        gain_loss: By how many nats the first arm's loss is smaller.
        only_first: Examples that only the first arm answers exactly.
        only_second: Examples that only the second arm answers exactly.
        mcnemar_p: Exact one-sided McNemar test that the first arm is no better; null where answers are open-ended.
        wilcoxon_p: One-sided Wilcoxon signed-rank test of F1, or of the loss where answers are open-ended, likewise.
    """

    n: int
    gain: Estimate | None
    gain_f1: Estimate | None
    gain_loss: Estimate
    only_first: int
    only_second: int
    mcnemar_p: float | None
    wilcoxon_p: float


class Corrected(Comparison):
    """A comparison among others: its p-values also corrected for how many tests they all are (`holm`)."""

    mcnemar_holm: float | None
    wilcoxon_holm: float


def rate(values: ArrayLike) -> Estimate:
    """Mean of scores in [0, 1]: Wilson's interval where all are 0 or 1, the bootstrap's where some lie between.

    A bootstrap of 0 right answers among 752 knows nothing but 0; Wilson's interval is [0, 0.005].
    """
    sample = np.asarray(values, dtype=float)
    if not np.isin(sample, (0, 1)).all():
        return estimate(sample)
    found = stats.binomtest(int(sample.sum()), len(sample)).proportion_ci(method="wilson")
    return Estimate(value=float(sample.mean()), low=float(found.low), high=float(found.high))


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


def over_seeds(runs: Sequence[ArrayLike], same_examples: bool = False) -> Estimate:
    """Mean over seeds of each seed's mean, and a bootstrap interval: seeds are drawn, then examples of each.

    Three seeds show little of how much seeds differ, so the interval is rather too narrow; look at each seed too.

    Args:
        runs: The scores of each seed's examples.
        same_examples: Whether all runs scored the same examples, in one order: they are drawn once for all seeds then,
            since the same questions thrice are not three times as many.
    """
    samples = [np.asarray(run, dtype=float) for run in runs]
    rngs = [np.random.default_rng((0, 0 if same_examples else place)) for place in range(len(runs))]
    means = np.stack([_resampled(sample, rng) for sample, rng in zip(samples, rngs, strict=True)])
    rng, size = np.random.default_rng(0), (RESAMPLES, len(runs))
    columns = np.arange(RESAMPLES)[:, None] if same_examples else rng.integers(RESAMPLES, size=size)
    drawn = means[rng.integers(len(runs), size=size), columns]
    low, high = np.percentile(drawn.mean(1), [2.5, 97.5])
    return Estimate(value=fmean(sample.mean() for sample in samples), low=float(low), high=float(high))


def _resampled(sample: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``RESAMPLES`` draws of as many examples."""
    size = (_BATCH, len(sample))
    return np.concatenate([sample[rng.integers(len(sample), size=size)].mean(1) for _ in range(RESAMPLES // _BATCH)])


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected for how many they are (Holm 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def corrected(found: Mapping[str, Comparison], *others: float) -> tuple[dict[str, Corrected], list[float]]:
    """Comparisons with their p-values corrected, and ``others``: all of them are one family of tests."""
    tests = [(name, "wilcoxon_p", row["wilcoxon_p"]) for name, row in found.items()]
    tests += [(name, "mcnemar_p", row["mcnemar_p"]) for name, row in found.items() if row["mcnemar_p"] is not None]
    after = holm([*(p for *_, p in tests), *others])
    by_test = {(name, test): p for (name, test, _), p in zip(tests, after, strict=False)}
    rows = {
        name: Corrected(mcnemar_holm=by_test.get((name, "mcnemar_p")), wilcoxon_holm=by_test[name, "wilcoxon_p"], **row)
        for name, row in found.items()
    }
    return rows, after[len(tests) :]


def count_tests(found: Iterable[Comparison]) -> int:
    """How many tests some comparisons make."""
    return sum(1 + (row["mcnemar_p"] is not None) for row in found)


def format_score(score: float | None) -> str:
    """A score as people read it; a dash where there is none."""
    return "–" if score is None else f"{score:.3f}"


def format_p(p: float | None) -> str:
    """A p-value as people read it; a dash where there is none."""
    return "–" if p is None else f"{p:.2g}"


def format_estimate(estimate: Estimate | None, signed: bool = False) -> str:
    """An estimate and its interval as people read them; a dash where there is none."""
    if estimate is None:
        return "–"
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def compare(
    exact: tuple[ArrayLike, ArrayLike], f1: tuple[ArrayLike, ArrayLike], loss: tuple[ArrayLike, ArrayLike]
) -> Comparison:
    """Is the first of two arms better than the second?

    Args:
        exact: Exact match of both, paired by position; nothing where answers are open-ended.
        f1: The same of F1.
        loss: The same of the loss, always given.
    """
    gain, gain_f1, saved = np.subtract(*exact), np.subtract(*f1), np.subtract(loss[1], loss[0])
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    graded = gain_f1 if len(gain_f1) else saved
    discordant = wins + losses
    mcnemar_p = float(stats.binomtest(wins, discordant, 0.5, alternative="greater").pvalue) if discordant else 1.0
    return Comparison(
        n=len(gain) or len(saved),
        gain=estimate(gain) if len(gain) else None,
        gain_f1=estimate(gain_f1) if len(gain_f1) else None,
        gain_loss=estimate(saved),
        only_first=wins,
        only_second=losses,
        mcnemar_p=mcnemar_p if len(gain) else None,
        wilcoxon_p=float(stats.wilcoxon(graded, alternative="greater").pvalue) if graded.any() else 1.0,
    )
