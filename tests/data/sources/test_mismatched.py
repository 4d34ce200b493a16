"""The training control: messages of other examples, in training only."""

import pytest

from lcf_lightning import ModelSpec, SharedContextDataModule
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import Knowledge, Mismatched, Mixture, World
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import SettingError


@pytest.fixture
def world() -> World:
    return World(train_size=200)


def test_in_training_every_sharer_has_read_another_examples_passages(world: World) -> None:
    own, made = (source.examples("train", 3) for source in (world, Mismatched(world)))
    assert all(one.sharer != other.sharer for one, other in zip(own, made, strict=True))
    assert sorted(row.sharer for row in made) == sorted(row.sharer for row in own)  # each message goes to one
    for one, other in zip(own, made, strict=True):
        assert (one.id, one.question, one.answers, one.receiver) == (
            other.id, other.question, other.answers, other.receiver
        )  # fmt: skip
    assert made == Mismatched(world).examples("train", 3)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_of_the_source_itself(world: World, split: str) -> None:
    assert list(Mismatched(world).examples(split, 3)) == list(world.examples(split, 3))  # type: ignore[arg-type]
    assert str(Mismatched(world)) == "Mismatched World"


def test_it_is_refused_where_both_models_read_what_the_sharer_reads() -> None:
    model = ModelSpec("tiny-sharer")
    assert SharedContextDataModule(Knowledge(), model, model).benchmarks == {}
    for source in (Mismatched(Knowledge()), Mixture([Knowledge(), Mismatched(Knowledge())])):
        with pytest.raises(SettingError, match="source=.*Mismatched Knowledge is for ContextMismatchDataModule only"):
            SharedContextDataModule(source, model, model)


class Both(Source):
    """Examples with a passage for each side and one for both."""

    def examples(self, split: Split, seed: int) -> list[Example]:
        return [
            Example(str(i), "who", ("ada",), ((f"sharer {i}.",),), ((f"receiver {i}.",),), shared=((f"both {i}.",),))
            for i in range(3)
        ]


def test_a_wrong_message_holds_nothing_that_both_had_read() -> None:
    for i, example in enumerate(Mismatched(Both()).examples("train", 0)):
        assert f"{i}." not in str(example.sharer_reads)
        assert example.receiver_reads == ((f"both {i}.",), (f"receiver {i}.",))
