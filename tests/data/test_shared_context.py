"""`SharedContextDataModule` and `SharedCollator`: one text, two tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lcf_lightning import ModelSpec, SharedContextDataModule
from lcf_lightning.data.batch import Batch, Collator, SharedCollator, _kept
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.models.spec import load_tokenizer
from tests.data.conftest import Listed

Make = Callable[..., SharedContextDataModule]


def example(id: str, question: str, **fields: Any) -> Example:
    return Example(id, question, ("Mary moved.",), **fields)


EXAMPLES = (
    example("a", "Where is Mary?"),
    example("b", "Where is the sharer, naïvely?", shared=(("The sharer has moved. ", "It is far."),)),
    example("c", "And now? 🧪", history=(("Where is Mary?", "Mary is here."), ("And John?", "There."))),
)


@pytest.fixture
def make(spec: Callable[[str], ModelSpec]) -> Make:
    def made(*examples: Example, stage: str = "test", **settings: Any) -> SharedContextDataModule:
        given = {"batch_size": 2, "eval_batch_size": 3, "source": Listed(*examples), **settings}
        data = SharedContextDataModule(sharer=spec("gemma3"), receiver=spec("qwen3"), **given)
        data.setup(stage)
        return data

    return made


def batch_of(data: SharedContextDataModule) -> Batch:
    return next(iter(data.evaluation_loader("test")))


def test_passages_of_one_side_only_are_refused(make: Make) -> None:
    for side in ("sharer", "receiver"):
        with pytest.raises(DataError, match="source=Listed gives 'a' passages of one side only"):
            make(example("b", "Who?"), example("a", "Who?", **{side: (("Mary moved.",),)}))


@pytest.mark.parametrize("chat", [False, True])
def test_kept_tokens_say_the_same(make: Make, chat: bool) -> None:
    data = make(*EXAMPLES, prompts=PromptSettings(chat=chat))
    batch = batch_of(data)
    theirs, own = load_tokenizer(data.sharer), load_tokenizer(data.receiver)
    assert batch.index.shape == batch.receiver.ids.shape
    assert batch.sharer.ids.shape != batch.receiver.ids.shape
    for row in range(3):
        places = batch.index[row][batch.receiver.mask[row]]
        assert (places.diff() >= 0).all()
        assert batch.sharer.mask[row][places].all()
        said = [own.decode([int(token)]) for token in batch.receiver.ids[row][batch.receiver.mask[row]]]
        heard = [theirs.decode([int(batch.sharer.ids[row, place])]) for place in places]
        pairs = [pair for pair in zip(said, heard, strict=True) if all(part.isascii() for part in pair)]
        assert sum(mine in other or other in mine for mine, other in pairs) > 0.9 * len(pairs)


@pytest.mark.parametrize("chat", [False, True])
def test_both_read_passages_history_and_question(make: Make, chat: bool) -> None:
    batch = batch_of(make(*EXAMPLES, prompts=PromptSettings(chat=chat)))
    data = make(*EXAMPLES)
    sides = ((data.sharer, batch.sharer.ids), (data.receiver, torch.cat([batch.receiver.ids, batch.last], 1)))
    for spec, ids in sides:
        text = load_tokenizer(spec).batch_decode(ids)
        assert "It is far." in text[1]
        assert text[2].index("Mary is here.") < text[2].index("And John?") < text[2].index("And now?")
        assert ("<|assistant|>" in text[2]) == chat


def test_the_same_model_on_both_sides_aligns_one_to_one(spec: Callable[[str], ModelSpec]) -> None:
    data = SharedContextDataModule(Listed(*EXAMPLES), spec("llama"), spec("llama"), eval_batch_size=3)
    data.setup("test")
    batch = batch_of(data)
    for row in range(3):
        places = batch.index[row][batch.receiver.mask[row]]
        assert batch.sharer.ids[row][places].tolist() == batch.receiver.ids[row][batch.receiver.mask[row]].tolist()
        assert places.diff().unique().tolist() == [1]


def test_longer_examples_are_left_out_of_training_and_kept_in_the_test(make: Make) -> None:
    long = example("long", "Where is Mary? " * 40)
    limits = PromptSettings(max_sharer_tokens=60, max_receiver_tokens=200)
    data = make(*EXAMPLES, long, stage="fit", prompts=limits)
    assert "long" not in {row.id for row in data._examples["train"]}
    assert "a" in {row.id for row in data._examples["validation"]}
    data.setup("test")
    assert [row.id for row in data._examples["test"]] == ["a", "b", "c", "long"]
    with pytest.raises(DataError, match="train split: all 1 examples exceed the token limits of prompts"):
        make(long, stage="fit", prompts=limits)


@pytest.mark.parametrize("most", [None, 3])
def test_a_limit_of_prompt_and_answer_counts_both(make: Make, most: int | None) -> None:
    """In the tokens of whichever model has more, and of the answer only what is scored."""
    short, long = example("short", "Where?"), example("long", "Where?", shared=(("Mary.",),))
    collator = make(short)._collator
    assert isinstance(collator, SharedCollator)
    needed = max(
        len(side.shared_prompt(long)[0].ids) + len([*side.candidate("Mary moved."), "end"][:most])
        for side in (collator.sharer, collator.receiver)
    )
    for limit, kept in ((needed, {"short", "long"}), (needed - 1, {"short"})):
        prompts = PromptSettings(max_total_tokens=limit, max_answer_tokens=most)
        found = make(short, long, stage="fit", prompts=prompts)._examples
        assert {row.id for split in found.values() for row in split} == kept
    with pytest.raises(SettingError, match="max_total_tokens=9 must be null where the two models read different"):
        Collator.of(PromptSettings(max_total_tokens=9), collator.sharer.tokenizer, collator.receiver.tokenizer)


def test_only_so_many_answer_tokens_are_scored(make: Make) -> None:
    whole, cut = (batch_of(make(*EXAMPLES, prompts=PromptSettings(max_answer_tokens=n))) for n in (None, 3))
    assert whole.answers.shape[1] > 3
    assert cut.answers.tolist() == whole.answers[:, :3].tolist()
    with pytest.raises(SettingError, match="max_answer_tokens=0 must be at least 1"):
        PromptSettings(max_answer_tokens=0)
    with pytest.raises(SettingError, match="alignment='last' must be one of first, longest"):
        PromptSettings(alignment="last")


def test_the_benchmarks_together_are_the_test_split(make: Make) -> None:
    data = make(benchmarks={"one": Listed(*EXAMPLES), "two": Listed(*EXAMPLES[:2])}, source=Listed())
    examples = data._examples["test"]
    assert [row.id for row in examples] == ["one/a", "one/b", "one/c", "two/a", "two/b"]
    assert [row.benchmark for row in examples] == ["one"] * 3 + ["two"] * 2


def test_prompts_are_encoded_once(make: Make) -> None:
    data = make(*EXAMPLES)
    batch_of(data)
    before = _kept.cache_info()
    batch_of(data)
    after = _kept.cache_info()
    assert after.hits == before.hits + 3
    assert after.misses == before.misses


def test_an_evaluation_may_put_like_lengths_together(make: Make) -> None:
    rows = [example(f"{n}", "Where is Mary? " * n) for n in (9, 1, 8, 2, 7)]
    data = make(*rows, eval_batch_size=2)
    in_order, by_length = (
        [id for batch in data.evaluation_loader("test", 4, order) for id in batch.ids] for order in (False, True)
    )
    assert len(in_order) == 4
    assert in_order == [row.id for row in rows if row.id in in_order]
    assert by_length == sorted(in_order)
    partners = [
        {row.id: partner.id for batch in data.evaluation_loader("test", 4, order)
         for row, partner in zip(batch.examples, batch.partners, strict=True)}
        for order in (False, True)
    ]  # fmt: skip
    assert partners[0] == partners[1]


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_prefix_is_read_by_both_and_not_scored(make: Make, chat: bool) -> None:
    settings = PromptSettings(chat=chat, question="{question}", answer_prefix="The answer is", answer=" {answer}")
    plain, begun = (
        make(*EXAMPLES[:2], source=Listed(*EXAMPLES[:2]), prompts=prompts)
        for prompts in (replace(settings, answer_prefix=None), settings)
    )
    own, theirs = load_tokenizer(begun.receiver), load_tokenizer(begun.sharer)
    batch, bare = batch_of(begun), batch_of(plain)
    whole = torch.cat([bare.receiver.ids, bare.last], 1)
    assert torch.equal(batch.receiver.ids, whole)  # what begins the answer is read after the message, as C2C reads it
    said = torch.cat([batch.question.ids, batch.last], 1)[:, : 1 + int(batch.question.mask.sum(1).max())]
    assert own.batch_decode(said) == ["The answer is"] * 2
    assert batch.index.shape == whole.shape
    texts = [[text.replace("<pad>", "") for text in theirs.batch_decode(given.sharer.ids)] for given in (bare, batch)]
    assert texts[1] == [f"{text}The answer is" for text in texts[0]]
    assert own.decode(batch.answers[0][batch.answer_mask[0]]) == " Mary moved.<eos>"


def test_receiver_tokens_need_one_vocabulary(make: Make, spec: Callable[[str], ModelSpec]) -> None:
    prompts = PromptSettings(sharer_reads="receiver_tokens")
    own, other = load_tokenizer(spec("llama")), load_tokenizer(spec("qwen3"))
    SharedCollator.of(prompts, other, own)  # either may know more
    SharedCollator.of(prompts, own, other)
    with pytest.raises(SettingError, match="sharer_reads='receiver_tokens' must be own: token .* of the receiver is"):
        SharedCollator.of(prompts, own, load_tokenizer(ModelSpec("tiny-receiver")))
    with pytest.raises(SettingError, match="must be own where the two models read different texts"):
        Collator.of(prompts, own, own)
    with pytest.raises(SettingError, match="sharer_reads='theirs' must be one of own, receiver_tokens"):
        PromptSettings(sharer_reads="theirs")
