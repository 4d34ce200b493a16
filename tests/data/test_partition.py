from __future__ import annotations

import random
from statistics import median

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


def many_examples(count: int = 60) -> list[Example]:
    rng = random.Random(0)
    return [example(index, rng.randrange(2000)) for index in range(count)]


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


def test_partners_are_a_derangement() -> None:
    for count in (2, 3, 60):
        partners = mismatched_partners(many_examples(count), seed=1)
        assert sorted(partners) == list(range(count))
        assert all(partner != index for index, partner in enumerate(partners))


def test_partners_hold_other_texts_even_among_twins() -> None:
    examples = [example(index % 3, 10) for index in range(30)]
    for seed in range(20):
        partners = mismatched_partners(examples, seed)
        assert len(partners) == 30
        assert all(examples[p].sharer != examples[i].sharer for i, p in enumerate(partners))


def test_partners_are_of_similar_length() -> None:
    """All but the longest, which wraps around, take the next longer text."""
    examples = many_examples()
    lengths = sorted(map(length_of, examples))
    pairs = [(length_of(examples[i]), length_of(examples[p])) for i, p in enumerate(mismatched_partners(examples, 3))]
    wrapped = [pair for pair in pairs if pair[1] < pair[0]]
    assert wrapped == [(lengths[-1], lengths[0])]
    assert median(abs(a - b) for a, b in pairs) < 100  # of lengths up to 2000


def test_partners_are_fixed_under_the_seed() -> None:
    examples = [example(index, 5) for index in range(20)]  # equal lengths: the seed decides
    assert mismatched_partners(examples, 1) == mismatched_partners(examples, 1)
    assert mismatched_partners(examples, 1) != mismatched_partners(examples, 2)


def test_partners_need_two_texts_that_differ() -> None:
    for examples in ([example(0, 5)] * 3, [example(0, 5)]):
        with pytest.raises(DataError, match=f"{len(examples)} examples hold the same sharer text"):
            mismatched_partners(examples, 0)
    assert mismatched_partners([example(0, 5), example(1, 5)], 0) == [1, 0]


def test_an_example_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="'7' has no answer; at least one is needed"):
        Example(id="7", question="q", answers=(), sharer=(), receiver=())
