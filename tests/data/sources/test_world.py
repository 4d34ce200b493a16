from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lcf_lightning.data.sources import World
from lcf_lightning.data.sources.world import NAMES, RELATIONS, VALUES
from lcf_lightning.errors import SettingError


def test_the_world_uses_a_name_once() -> None:
    for example in World(train_size=200).examples("train", 1):
        facts = [passage[0].split() for passage in example.sharer + example.receiver]
        assert len({name for _, name, _, _ in facts}) == len(facts) == 7
        assert all(r in RELATIONS and n in NAMES and v in VALUES and dot == "." for r, n, v, dot in facts)


def test_the_right_side_answers_the_world_question() -> None:
    sides = Counter()
    for example in World(train_size=200).examples("train", 1):
        fact = f"{example.question} {example.answers[0]} ."
        sides[example.needs_sharer] += 1
        assert ((fact,) in example.sharer) == example.needs_sharer
        assert ((fact,) in example.receiver) != example.needs_sharer
    assert min(sides.values()) > 20


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.6, 1.0])
def test_the_fraction_of_own_questions_is_kept(fraction: float) -> None:
    examples = list(World(own_questions=fraction, train_size=2000).examples("train", 7))
    share = sum(not example.needs_sharer for example in examples) / 2000
    assert abs(share - fraction) < 0.04
    assert (share in (0, 1)) == (fraction in (0, 1))


def test_world_sizes_and_facts_follow_the_settings() -> None:
    world = World(sharer_facts=2, receiver_facts=0, own_questions=0, train_size=5, validation_size=3, test_size=4)
    assert [len(world.examples(split, 0)) for split in ("train", "validation", "test")] == [5, 3, 4]
    assert len(list(world.examples("test", 0))) == 4
    assert {(len(e.sharer), len(e.receiver)) for e in world.examples("train", 0)} == {(2, 0)}
    with pytest.raises(IndexError):
        world.examples("test", 0)[4]


def test_world_splits_are_disjoint() -> None:
    world = World(train_size=500, validation_size=500, test_size=500)
    splits = [list(world.examples(split, 3)) for split in ("train", "validation", "test")]
    everything = [example for split in splits for example in split]
    assert len({example.id for example in everything}) == 1500
    assert len({(example.sharer, example.receiver) for example in everything}) == 1500


def test_the_world_is_a_function_of_its_seed() -> None:
    assert list(World().examples("test", 5)) == list(World().examples("test", 5))
    assert World().examples("test", 5)[9].sharer != World().examples("test", 6)[9].sharer
    assert World(test_size=9999).examples("test", 5)[9] == World().examples("test", 5)[9]


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"sharer_facts": 0}, "sharer_facts=0 and receiver_facts=3 must be at least 1 and 0"),
        ({"receiver_facts": -1}, "receiver_facts=-1 must be at least 1 and 0"),
        ({"sharer_facts": 1000}, f"at most {len(NAMES)} together"),
        ({"own_questions": 1.5}, r"own_questions=1.5 must be a fraction in \[0, 1\]"),
        ({"own_questions": -0.1}, "own_questions=-0.1 must be a fraction"),
        ({"receiver_facts": 0}, "own_questions=0.25 must be a fraction .* and 0 where receiver_facts is 0"),
        ({"train_size": -1}, "train_size=-1"),
        ({"validation_size": -1}, "validation_size=-1"),
        ({"test_size": -1}, "test_size=-1"),
    ],
)
def test_world_settings_out_of_range_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        World(**setting)
