from __future__ import annotations

from typing import Any

import pytest

from lcf_lightning.data.sources import Knowledge
from lcf_lightning.data.sources.knowledge import FACTS
from lcf_lightning.data.sources.world import NAMES, RELATIONS
from lcf_lightning.errors import SettingError


def test_no_fact_is_in_two_splits_and_none_is_lost() -> None:
    splits = [Knowledge().examples(split, 42) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
    everything = [example.question for examples in splits for example in examples]
    assert [len(examples) for examples in splits] == [312, 64, 128]
    assert sorted(everything) == sorted(f"{relation} {name}" for relation in RELATIONS for name in NAMES)


def test_the_answer_is_the_fact_and_one_of_the_choices() -> None:
    known = {f"{relation} {name}": value for relation, name, value in FACTS}
    for example in Knowledge().examples("test", 1):
        assert example.answers == (known[example.question],)
        assert example.answers[0] in example.choices
        assert len(set(example.choices)) == 4
    places = [example.choices.index(example.answers[0]) for example in Knowledge().examples("train", 1)]
    assert min(places.count(place) for place in range(4)) > 40  # the place of the answer says nothing
    assert {example.choices for example in Knowledge(choices=0).examples("test", 1)} == {()}


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"choices": 1}, "choices=1 must be 0, or between 2 and 63"),
        ({"choices": 64}, "choices=64 must be 0, or between 2 and 63"),
        ({"validation_size": 0}, "validation_size=0 and test_size=128 must be at least 1"),
        ({"test_size": 440}, "leave some of the 504 facts for training"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        Knowledge(**setting)
