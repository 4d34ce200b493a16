from __future__ import annotations

from math import comb

import numpy as np
import pytest

from lcf_lightning.evaluation.statistics import compare, corrected, count_tests, estimate, holm, over_seeds, rate


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
    found = compare((first, second), (first, second), (second, first))
    assert (found["n"], found["only_first"], found["only_second"]) == (16, 9, 2)
    tail = sum(comb(11, wins) for wins in range(9, 12)) / 2**11
    assert found["mcnemar_p"] == pytest.approx(tail)
    assert found["gain"] is not None
    assert found["gain"]["value"] == pytest.approx(7 / 16)
    assert found["gain_loss"]["value"] == pytest.approx(7 / 16)
    back = compare((second, first), (second, first), (first, second))
    assert back["mcnemar_p"] is not None
    assert back["mcnemar_p"] > 0.9  # one-sided


def test_wilcoxon_is_one_sided_too() -> None:
    better, worse = np.linspace(0.3, 1, 20), np.linspace(0.1, 0.7, 20)
    same = [0.0] * 20
    assert compare((same, same), (better, worse), (same, same))["wilcoxon_p"] < 1e-4
    assert compare((same, same), (worse, better), (same, same))["wilcoxon_p"] > 0.99
    assert compare(([], []), ([], []), (worse, better))["wilcoxon_p"] < 1e-4  # open-ended: the smaller loss is better


def test_equal_arms_differ_by_nothing() -> None:
    found = compare(([1, 0, 1], [1, 0, 1]), ([1, 0.5, 1], [1, 0.5, 1]), ([2, 2, 3], [2, 2, 3]))
    assert (found["mcnemar_p"], found["wilcoxon_p"], found["only_first"], found["only_second"]) == (1, 1, 0, 0)
    assert found["gain"] == found["gain_f1"] == {"value": 0, "low": 0, "high": 0}


def test_a_rate_of_nothing_among_many_is_not_known_to_be_nothing() -> None:
    """Wilson's interval, written out, beside the bootstrap's, which sees no spread."""
    found, n, z = rate([0.0] * 752), 752, 1.959964
    assert (found["value"], found["low"]) == (0, 0)
    assert found["high"] == pytest.approx(z**2 / (n + z**2), rel=1e-4)
    assert found["high"] == pytest.approx(0.005, abs=2e-4)
    assert estimate([0.0] * 752)["high"] == 0
    half, part = rate([1.0, 0.0] * 50), rate([0.5, 0.25, 1.0] * 20)
    assert half["high"] - half["low"] == pytest.approx(2 * z * 0.05 / (1 + z**2 / 100) ** 0.5, rel=1e-3)
    assert part == estimate([0.5, 0.25, 1.0] * 20)  # no count of anything


def test_holm_is_the_step_down_of_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_tests_of_a_family_are_corrected_together() -> None:
    found = {
        "a": compare(([1] * 8, [0] * 8), ([1] * 8, [0] * 8), ([0] * 8, [1] * 8)),
        "open": compare(([], []), ([], []), ([0.0] * 8, list(range(1, 9)))),
    }
    rows, others = corrected(found, 0.5)
    assert count_tests(found.values()) == 3
    assert (rows["open"]["mcnemar_p"], rows["open"]["mcnemar_holm"], rows["open"]["gain"]) == (None, None, None)
    assert rows["a"]["mcnemar_p"] == rows["a"]["wilcoxon_p"] == rows["open"]["wilcoxon_p"] == 1 / 2**8
    assert rows["a"]["mcnemar_holm"] == rows["open"]["wilcoxon_holm"] == pytest.approx(4 / 2**8)
    assert others == [0.5]


def test_the_interval_over_seeds_knows_how_far_they_are_apart() -> None:
    alike, apart = ([[1] * right + [0] * (200 - right) for right in rights] for rights in ((100,) * 3, (60, 100, 140)))
    one, three, wide = (over_seeds(runs) for runs in (alike[:1], alike, apart))
    assert one["value"] == three["value"] == wide["value"] == 0.5
    deviation = np.sqrt(0.25 / 200)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert three["high"] - three["low"] == pytest.approx(2 * 1.96 * deviation / np.sqrt(3), rel=0.1)
    assert wide["low"] < 0.35 < 0.65 < wide["high"]
