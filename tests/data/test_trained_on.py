"""What must not slip in unseen: which answer is taught, which examples, how many at once, which passages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from lcf_lightning import ModelSpec
from lcf_lightning.data.batch import Collator
from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import parse_passages
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.errors import SettingError
from lcf_lightning.models.spec import load_tokenizer
from tests.data.conftest import Make, on_rank

Spec = Callable[[str], ModelSpec]


def test_the_first_of_several_answers_is_taught(spec: Spec) -> None:
    collator = Collator.of(PromptSettings(), load_tokenizer(spec("llama")), load_tokenizer(spec("qwen3")))
    batch = collator.train([Example("a", "Where?", ("home", "at home", "the house"), (("Facts.",),), ())])
    assert batch.answers[0].tolist() == collator.receiver.answer("home")


@pytest.mark.parametrize("side", ["sharer", "receiver"])
def test_an_example_too_long_for_either_side_does_not_fit(spec: Spec, side: str) -> None:
    example = Example("a", "Where is Mary?", ("home",), (), ())
    for limit, fits in ((1, False), (10_000, True)):
        settings = PromptSettings(**{f"max_{side}_tokens": limit})
        tokenizers = load_tokenizer(spec("llama")), load_tokenizer(spec("qwen3"))
        collator = SharedCollator.of(settings, *tokenizers)
        assert isinstance(collator, SharedCollator)
        assert collator.fits(example, collator.write(example, 1)) is fits


def test_a_fit_goes_on_with_as_many_examples_at_once(make: Make) -> None:
    """Two processes of four take what one of eight does, and one of four does not."""
    state = on_rank(make(batch_size=4), 0, 2).state_dict()
    for batch_size, ranks in ((8, 1), (4, 2), (4, 1)):
        module = on_rank(make(batch_size=batch_size), 0, ranks)
        module.trainer.state = type("State", (), {"fn": TrainerFn.FITTING})  # type: ignore[union-attr]
        if batch_size * ranks == 8:
            module.load_state_dict(state)
        else:
            with pytest.raises(SettingError, match="batch_size=4 on 1 processes gives 4 .* it must be 8"):
                module.load_state_dict(state)


def test_blank_passages_are_none() -> None:
    for text in (["Ada ran.", "  ", "", "Ben sat."], "Ada ran.\n  \n\nBen sat.\n"):
        assert parse_passages(text) == (("Ada ran.",), ("Ben sat.",))
