"""Which examples a limit takes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcf_lightning.data.sample import sample, shares

SPLIT = ["arc"] * 50 + ["mmlu"] * 30 + ["obqa"] * 20


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((50, 30, 20), 10, (5, 3, 2)),
        ((50, 30, 20), 7, (4, 2, 1)),  # 3.5, 2.1, 1.4: the largest remainder
        ((50, 30, 20), 4, (2, 1, 1)),
        ((100, 1, 1), 4, (2, 1, 1)),  # at least one each
        ((100, 1, 1), 3, (1, 1, 1)),
        ((100, 1, 1), 2, (2, 0, 0)),  # fewer than benchmarks
        ((5, 5), 10, (5, 5)),
    ],
)
def test_shares_are_in_proportion(sizes: tuple[int, ...], limit: int, expected: tuple[int, ...]) -> None:
    assert tuple(shares(dict(zip("abc", sizes, strict=False)), limit).values()) == expected


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=8), data=st.data())
def test_shares_add_up_and_leave_none_out(sizes: list[int], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, sum(sizes)))
    taken = shares({str(place): size for place, size in enumerate(sizes)}, limit)
    assert sum(taken.values()) == limit
    for size, share in zip(sizes, taken.values(), strict=True):
        assert 0 <= share <= size
        assert share >= 1 or limit < len(sizes)
        assert share <= max(1, limit * size / sum(sizes) + 1)


def test_a_sample_has_every_benchmark_in_the_order_of_the_data() -> None:
    places = sample(SPLIT, 10, 1)
    assert places == sorted(set(places))
    assert Counter(SPLIT[place] for place in places) == {"arc": 5, "mmlu": 3, "obqa": 2}


def test_the_seed_chooses_and_not_the_order() -> None:
    assert sample(SPLIT, 10, 1) == sample(SPLIT, 10, 1) != sample(SPLIT, 10, 2)
    taken = Counter(place for seed in range(200) for place in sample(SPLIT, 10, seed))
    assert set(taken) == set(range(100))
    assert max(taken.values()) < 50  # of 200; 20 on average


def test_a_larger_sample_holds_the_smaller() -> None:
    for limit in range(1, 60):
        assert set(sample(["one"] * 60, limit, 3)) < set(sample(["one"] * 60, limit + 1, 3))
    assert set(sample(SPLIT, 10, 3)) < set(sample(SPLIT, 20, 3))


@pytest.mark.parametrize("limit", [None, 100, 1000])
def test_no_limit_or_a_large_one_takes_all(limit: int | None) -> None:
    assert sample(SPLIT, limit, 0) == list(range(100))
