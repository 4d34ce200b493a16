from __future__ import annotations

from math import comb

import numpy as np
import pytest

from lcf_lightning.evaluation.statistics import compare, estimate


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [estimate(rng.binomial(1, 0.3, 60), seed) for seed in range(60)]
    covered = sum(one["low"] <= 0.3 <= one["high"] for one in found)
    assert 52 <= covered <= 60  # 95 % of 60 is 57
    assert all(one["low"] < one["value"] < one["high"] for one in found)


def test_the_interval_narrows_and_is_the_same_for_a_seed() -> None:
    few, many = estimate([0, 1] * 10), estimate([0, 1] * 1000)
    assert few["value"] == many["value"] == 0.5
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 5
    assert estimate([0, 1, 1], seed=3) == estimate([0, 1, 1], seed=3)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.4, 0.4]])
def test_what_does_not_vary_has_no_width(values: list[float]) -> None:
    found = estimate(values)
    assert found["low"] == found["high"] == found["value"] == pytest.approx(0.4)


def test_mcnemar_is_the_binomial_tail() -> None:
    first, second = [1] * 9 + [0] * 2 + [1] * 5, [0] * 9 + [1] * 2 + [1] * 5
    found = compare(first, second, first, second)
    assert (found["n"], found["only_first"], found["only_second"]) == (16, 9, 2)
    tail = sum(comb(11, wins) for wins in range(9, 12)) / 2**11
    assert found["mcnemar_p"] == pytest.approx(tail)
    assert found["gain"]["value"] == pytest.approx(7 / 16)
    assert compare(second, first, second, first)["mcnemar_p"] > 0.9  # one-sided


def test_wilcoxon_is_one_sided_too() -> None:
    better, worse = np.linspace(0.3, 1, 20), np.linspace(0.1, 0.7, 20)
    same = [0.0] * 20
    assert compare(same, same, better, worse)["wilcoxon_p"] < 1e-4
    assert compare(same, same, worse, better)["wilcoxon_p"] > 0.99


def test_equal_arms_differ_by_nothing() -> None:
    found = compare([1, 0, 1], [1, 0, 1], [1, 0.5, 1], [1, 0.5, 1])
    assert (found["mcnemar_p"], found["wilcoxon_p"], found["only_first"], found["only_second"]) == (1, 1, 0, 0)
    assert found["gain"] == found["gain_f1"] == {"value": 0, "low": 0, "high": 0}
