"""Whose message is the wrong one where both models read the same text, and which of its tokens stands where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pytest
import torch

from lcf_lightning import ModelSpec, SharedContextDataModule
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.errors import DataError
from lcf_lightning.models.spec import load_tokenizer
from tests.data.conftest import Listed
from tests.data.test_shared_context import EXAMPLES, example
from tests.pairs import small_data

Spec = Callable[[str], ModelSpec]
Made = tuple[SharedContextDataModule, Batch, SharedCollator]


def made(spec: Spec, *rows: Example, pair: tuple[str, str] = ("gemma3", "qwen3"), **settings: Any) -> Made:
    """Of some examples as the test split the module, its one batch, and what wrote it."""
    data = SharedContextDataModule(
        Listed(*rows), spec(pair[0]), spec(pair[1]), eval_batch_size=len(rows) or 9, **settings
    )
    data.setup("test")
    collator = data._collator
    assert isinstance(collator, SharedCollator)
    return data, next(iter(data.evaluation_loader("test"))), collator


def partners(batch: Batch) -> dict[str, str]:
    return {row.id: partner.id for row, partner in zip(batch.examples, batch.partners, strict=True)}


def sent(batch: Batch, collator: SharedCollator, of: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, index = collator.message_of(of, lambda row: row.sharer, batch.examples)
    assert index.shape == batch.receiver.ids.shape
    assert index.dtype == torch.long
    return tokens.ids, index


def choice(id: str, stem: str, *choices: str) -> Example:
    listed = [f"{letter}. {text}" for letter, text in zip("ABCDEF", choices, strict=False)]
    question = "\n".join([stem, *listed, "Answer with the letter of the right choice."])
    return Example(id, question, ("A",), choices=tuple("ABCDEF"[: len(choices)]))


CHOICES = (
    choice("short", "Who?", "it", "Mary, who moved a long way off", "the cat"),
    choice("long", "Where is the sharer, naïvely? " * 5, "here", "far", "the sharer has read something " * 4),
)


# Which example


def test_a_wrong_message_is_of_another_text_of_like_length(spec: Spec) -> None:
    rows = [example(f"{n}", "Where is Mary? " * n) for n in (1, 2, 8, 9)]
    assert partners(made(spec, *rows)[1]) == {"1": "2", "2": "1", "8": "9", "9": "8"}
    with pytest.raises(DataError, match="the split holds one and the same text in all of its 2 examples"):
        made(spec, example("x", "Who?"), example("y", "Who?"))


def test_tokens_are_counted_and_not_characters(spec: Spec) -> None:
    """Characters outside the vocabulary are several tokens each."""
    rows = [example("rare", "🧪" * 20), example("long", "Where is Mary? " * 8), example("short", "Where is Mary? Who?")]
    _, batch, collator = made(spec, *rows)
    tokens = {row.id: collator.sharer_tokens(row) for row in rows}
    assert tokens == dict(zip(batch.ids, batch.sharer.mask.sum(1).tolist(), strict=True))
    assert tokens["rare"] - tokens["long"] < tokens["rare"] - tokens["short"]  # and by characters the other way
    assert partners(batch)["rare"] == "long"


def test_a_wrong_message_is_of_the_same_benchmark(spec: Spec) -> None:
    one = [example(f"{n}", "Where is Mary? " * n) for n in (1, 3, 5)]
    two = [example(f"{n}", "And where is Mary? " * n) for n in (1, 3, 5)]
    _, batch, _ = made(spec, benchmarks={"one": Listed(*one), "two": Listed(*two)})
    assert len(batch) == 6
    assert all(row.benchmark == partner.benchmark for row, partner in zip(batch.examples, batch.partners, strict=True))
    with pytest.raises(DataError, match="benchmark 'two' holds one and the same text in all of its 1 examples"):
        made(spec, benchmarks={"one": Listed(*one), "two": Listed(two[0])})


def test_a_question_of_the_same_form_is_preferred_to_a_nearer_one(spec: Spec) -> None:
    four = [choice(f"four {n}", "Where is Mary? " * n, "it", "far", "here", "off") for n in (1, 9)]
    three = [choice(f"three {n}", "Where is Mary? " * n, "it", "far", "here") for n in (2, 8)]
    chats = [example(f"chat {n}", "Who? " * n, history=(("Where is Mary?", "Far."),)) for n in (1, 9)]
    lone = choice("two", "Where is Mary?", "it", "far")
    found = partners(made(spec, *four, *three, *chats, lone, prompts=PromptSettings(chat=True))[1])
    assert found.pop("two") in {row.id for row in (*four, *three, *chats)}  # no other has its form
    assert all(id.split()[0] == partner.split()[0] for id, partner in found.items())


# Which token


@pytest.mark.parametrize("chat", [False, True])
def test_every_token_of_a_line_is_one_of_the_same_line(spec: Spec, chat: bool) -> None:
    data, batch, collator = made(spec, *CHOICES, prompts=PromptSettings(chat=chat, question="{question}\n"))
    theirs, own = load_tokenizer(data.sharer), load_tokenizer(data.receiver)
    ids, index = sent(batch, collator, batch.partners)
    lines_seen = set()
    for row in range(2):
        start = int(batch.receiver.mask[row].long().argmax())
        for place in range(start, index.shape[1]):
            mine = own.decode(batch.receiver.ids[row, start : place + 1])
            heard = theirs.decode(ids[row, : index[row, place] + 1])
            lines = [text.rstrip("\n").count("\n") for text in (mine, heard)]
            assert lines[0] == lines[1], (mine, heard)
            lines_seen.add(lines[0])
    assert len(lines_seen) >= 5


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("rows", [EXAMPLES, CHOICES])
def test_an_examples_own_message_stands_where_it_would_in_training(
    spec: Spec, rows: tuple[Example, ...], chat: bool
) -> None:
    """So that message and mismatched differ in content alone."""
    _, batch, collator = made(spec, *rows, pair=("llama", "llama"), prompts=PromptSettings(chat=chat))
    ids, index = sent(batch, collator, batch.examples)
    assert ids.tolist() == batch.sharer.ids.tolist()
    assert index[batch.receiver.mask].tolist() == batch.index[batch.receiver.mask].tolist()


def test_a_wrong_message_of_equal_length_stands_where_the_right_one_would(spec: Spec) -> None:
    rows = [example("x", "Who is Bob?"), example("y", "Who is Tim?")]
    _, batch, collator = made(spec, *rows, pair=("llama", "llama"))
    assert batch.sharer.mask.all()  # equally many tokens, or this test says nothing
    ids, index = sent(batch, collator, batch.partners)
    assert index.tolist() == batch.index.tolist()
    assert int(index.max()) == ids.shape[1] - 2  # the last prompt token's place is nobody's


@pytest.mark.parametrize("chat", [False, True])
def test_another_examples_message_is_spread_over_the_receivers_tokens(spec: Spec, chat: bool) -> None:
    _, batch, collator = made(spec, *EXAMPLES, prompts=PromptSettings(chat=chat))
    for turn in range(1, 3):
        others = [batch.examples[(row + turn) % 3] for row in range(3)]
        tokens, index = collator.message_of(others, lambda row: row.sharer, batch.examples)
        for row in range(3):
            places = index[row][batch.receiver.mask[row]]
            assert tokens.mask[row][places].all()
            assert int(places[0]) == int(tokens.mask[row].nonzero()[0])
            assert tokens.ids.shape[1] - 6 < int(places[-1]) < tokens.ids.shape[1]
            assert (places.diff() >= 0).all()


def test_the_training_split_needs_no_wrong_message(spec: Spec) -> None:
    rows = [example("x", "Who?"), example("y", "Who?")]  # the same text
    data = SharedContextDataModule(Listed(*rows), spec("gemma3"), spec("qwen3"), eval_batch_size=2)
    data.setup("fit")
    (batch,) = data.evaluation_loader("train")
    assert batch.ids == ["x", "y"]
    assert batch.partners == ()
    with pytest.raises(DataError, match="one and the same text"):
        data.evaluation_loader("validation")


def test_an_example_that_nobody_can_read_stops_only_those_that_meet_it(spec: Spec) -> None:
    """A question beyond the limit has a length too; a sample without it is evaluated."""
    rows = [Example(str(i), f"who {'x' * i}", ("tea",), ((f"likes {i} tea .",),), ()) for i in range(5)]
    rows.append(Example("long", "who " * 60, ("tea",), (("likes eva tea .",),), ()))
    prompts = PromptSettings(question=" {question}", max_sharer_tokens=60)
    data = small_data(spec("llama"), spec("qwen3"), source=Listed(*rows), prompts=prompts, eval_batch_size=1)
    data.setup("test")
    loader = data.evaluation_loader("test")
    assert [batch.ids for batch in islice(loader, 5)] == [[str(i)] for i in range(5)]
    with pytest.raises(DataError, match="max_sharer_tokens=60 is too small"):
        list(loader)
