"""Twice the training examples: what sharer and receiver read, exchanged."""

import pytest

from lcf_lightning.data.sources import BothWays, World
from lcf_lightning.data.sources.source import Split


def test_training_examples_stand_there_twice_with_sides_exchanged() -> None:
    own = list(World(train_size=20).examples("train", 3))
    both = BothWays(World(train_size=20)).examples("train", 3)
    assert list(both[:20]) == own
    for one, other in zip(own, both[20:], strict=True):
        assert (other.sharer, other.receiver) == (one.receiver, one.sharer)
        assert (other.question, other.answers, other.shared) == (one.question, one.answers, one.shared)
    assert len({example.id for example in both}) == 40


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_of_the_source_itself(split: Split) -> None:
    source = World(train_size=20)
    assert list(BothWays(source).examples(split, 3)) == list(source.examples(split, 3))
