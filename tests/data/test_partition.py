from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.partition import checked_mode, mismatched_partners, partition, shuffled
from lcf_lightning.errors import DataError, SettingError

PASSAGES: tuple[Passage, ...] = tuple((f"paragraph {index}.",) for index in range(10))
SUPPORTING = (2, 7)


def halves(seed: int) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    return partition(PASSAGES, SUPPORTING, "split", f"seed/{seed}")


def example(index: int, length: int) -> Example:
    text = f"{index:03d}" + "x" * length
    return Example(id=str(index), question="q", answers=("a",), sharer=((text,),), receiver=())


def length_of(example: Example) -> int:
    return len(example.sharer[0][0])


def test_each_side_has_half_and_one_supporting_paragraph() -> None:
    gold = {PASSAGES[index] for index in SUPPORTING}
    for seed in range(200):
        sharer, receiver = halves(seed)
        assert len(sharer) == len(receiver) == 5
        assert len(gold & set(sharer)) == len(gold & set(receiver)) == 1


def test_nothing_is_lost_or_duplicated_and_order_is_kept() -> None:
    for seed in range(200):
        sharer, receiver = halves(seed)
        assert sorted(sharer + receiver) == sorted(PASSAGES)
        assert list(sharer) == sorted(sharer)
        assert list(receiver) == sorted(receiver)


def test_the_seed_alone_decides() -> None:
    assert [halves(seed) for seed in range(20)] == [halves(seed) for seed in range(20)]
    assert len({halves(seed) for seed in range(20)}) > 15


def test_the_order_of_the_supporting_paragraphs_does_not_matter() -> None:
    for seed in range(20):
        assert partition(PASSAGES, (7, 2, 7), "split", f"seed/{seed}") == halves(seed)
    assert {PASSAGES[2] in halves(seed)[0] for seed in range(20)} == {True, False}


def test_either_supporting_paragraph_goes_to_the_sharer() -> None:
    swaps = sum(PASSAGES[2] in halves(seed)[0] for seed in range(200))
    companions = {passage for seed in range(200) for passage in halves(seed)[0]}
    assert 60 < swaps < 140
    assert companions == set(PASSAGES)


def test_a_single_supporting_passage_goes_to_the_sharer() -> None:
    for seed in range(50):
        sharer, receiver = partition(PASSAGES[:5], [3], "split", str(seed))
        assert PASSAGES[3] in sharer
        assert (len(sharer), len(receiver)) == (3, 2)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), size=st.integers(1, 12), seed=st.text(max_size=5))
def test_any_split_is_balanced(data: st.DataObject, size: int, seed: str) -> None:
    gold = data.draw(st.sets(st.integers(0, size - 1)))
    passages = tuple((str(index),) for index in range(size))
    sharer, receiver = partition(passages, sorted(gold), "split", seed)
    held = sum(int(passage[0]) in gold for passage in sharer)
    assert set(sharer) | set(receiver) == set(passages)
    assert len(sharer) + len(receiver) == size
    assert len(sharer) - len(receiver) in (0, 1)
    assert held == (len(gold) + 1) // 2


def test_mode_sharer_gives_the_sharer_everything() -> None:
    for seed in ("a", "b"):
        assert partition(PASSAGES, SUPPORTING, "sharer", seed) == (PASSAGES, ())
    assert partition(PASSAGES, SUPPORTING, "split", "a")[1] != ()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(SettingError, match="partition='half' must be one of split, sharer"):
        partition(PASSAGES, SUPPORTING, "half", "a")
    with pytest.raises(SettingError, match="partition='' must be one of split, sharer"):
        checked_mode("")
    assert [checked_mode(mode) for mode in ("split", "sharer")] == ["split", "sharer"]


def test_shuffling_depends_on_the_seed_only() -> None:
    items = list(range(30))
    assert shuffled(items, "a") == shuffled(items, "a") != shuffled(items, "b")
    assert sorted(shuffled(items, "a")) == items == list(range(30))


def partners_of(examples: list[Example], seed: int = 0, **given: Any) -> list[int]:
    return mismatched_partners(examples, [length_of(example) for example in examples], seed, **given)


def test_of_equal_lengths_each_message_is_used_once() -> None:
    for count in (2, 3, 60):
        partners = partners_of([example(index, 5) for index in range(count)], seed=1)
        assert sorted(partners) == list(range(count))
        assert all(partner != index for index, partner in enumerate(partners))


def test_partners_hold_other_texts_even_among_twins() -> None:
    examples = [example(index % 3, 10) for index in range(30)]
    for seed in range(20):
        partners = partners_of(examples, seed)
        assert len(partners) == 30
        assert all(examples[p].sharer != examples[i].sharer for i, p in enumerate(partners))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from("ab"), st.integers(0, 2)), min_size=1
    ),
    seed=st.integers(0, 3),
)
def test_a_partner_is_of_the_benchmark_and_form_and_the_nearest(
    rows: list[tuple[int, int, str, int]], seed: int
) -> None:
    """Text, length, benchmark and form of each example are drawn; a plain search says what is right."""
    examples = [replace(example(text, 5), id=str(id), benchmark=name) for id, (text, _, name, _) in enumerate(rows)]
    lengths, forms = [row[1] for row in rows], [row[3] for row in rows]
    others = [
        [at for at in range(len(rows)) if rows[at][2] == name and rows[at][0] != text] for text, _, name, _ in rows
    ]
    if not all(others):
        with pytest.raises(DataError, match="benchmark '[ab]' holds one and the same text"):
            mismatched_partners(examples, lengths, seed, forms=forms)
        return
    for index, partner in enumerate(mismatched_partners(examples, lengths, seed, forms=forms)):
        allowed = [at for at in others[index] if forms[at] == forms[index]] or others[index]
        nearest = min(abs(lengths[at] - lengths[index]) for at in allowed)
        assert partner in allowed
        assert abs(lengths[partner] - lengths[index]) == nearest


def test_the_given_lengths_decide_and_not_the_characters() -> None:
    examples = [example(0, 10), example(1, 11), example(2, 500)]
    assert mismatched_partners(examples, [7, 90, 8], 0) == [2, 2, 0]


def test_partners_are_fixed_under_the_seed() -> None:
    examples = [example(index, 5) for index in range(20)]  # equal lengths: the seed decides
    assert partners_of(examples, 1) == partners_of(examples, 1)
    assert partners_of(examples, 1) != partners_of(examples, 2)


def test_between_a_shorter_and_a_longer_one_equally_near_the_seed_decides() -> None:
    examples = [example(index, 5 + index) for index in range(3)]
    assert {partners_of(examples, seed)[1] for seed in range(20)} == {0, 2}


def test_partners_need_two_texts_that_differ() -> None:
    for examples in ([example(0, 5)] * 3, [example(0, 5)]):
        with pytest.raises(
            DataError, match=f"the split holds one and the same text in all of its {len(examples)} exam"
        ):
            partners_of(examples)
    assert partners_of([example(0, 5), example(1, 5)]) == [1, 0]
    for alone in ([example(2, 5)], [example(2, 5)] * 4):
        named = [replace(row, benchmark="arc") for row in alone] + [example(0, 5), example(1, 5)]
        with pytest.raises(
            DataError, match=f"benchmark 'arc' holds one and the same text in all of its {len(alone)} ex"
        ):
            partners_of(named)


def test_an_example_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="'7' has no answer; at least one is needed"):
        Example(id="7", question="q", answers=(), sharer=(), receiver=())
