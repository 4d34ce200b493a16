from __future__ import annotations

from collections.abc import Sequence

import pytest

from lcf_lightning import ModelSpec
from lcf_lightning.data.batch import Collator
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Continuation, HotpotQA
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.models.spec import load_tokenizer
from tests.data.sources.rows import REAL, needs_real_data, text_of

LONG: Passage = ("Title: ", "One is here.", " Two is here.", " Three is here.")
FLAT: Passage = ("a b  c d e",)


class Made(Source):
    """Given passages, which say in the training split what they say, and in the others the split's name too."""

    def __init__(self, *rows: dict[str, tuple[Passage, ...]]) -> None:
        self.rows = rows

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        told: Passage = () if split == "train" else (f" In {split} so.",)
        return [
            Example(f"m{place}", "what?", ("nothing",), **{
                side: tuple((*passage, *told) for passage in passages) for side, passages in row.items()
            })  # type: ignore[arg-type]
            for place, row in enumerate(self.rows)
        ]  # fmt: skip


def cut(source: Source, split: Split = "train", min_words: int = 2) -> list[tuple[str, str]]:
    return [(text_of(e.sharer), e.answers[0]) for e in Continuation(source, min_words).examples(split, 0)]


def test_a_passage_is_cut_between_sentences_and_a_single_sentence_between_words() -> None:
    assert cut(Made({"sharer": (LONG,), "receiver": (FLAT,)})) == [
        ("Title: One is here. Two is here.", "Three is here."), ("a b  c", "d e")
    ]  # fmt: skip
    first, second = Continuation(Made({"sharer": (LONG, FLAT)}), 2).examples("train", 0)
    assert first.sharer == (("Title: One is here.", " Two is here."),)
    for example in (first, second):
        assert (example.open_ended, example.receiver_reads, example.shared) == (True, (), ())
        assert example.question == "Continue the text."


def test_each_distinct_text_is_taken_once_and_in_order() -> None:
    rows = (
        {"sharer": (("s 1",), ("both 0",)), "receiver": (("r 2",),), "shared": (("both 0",), ("x 3",))},
        {"receiver": (("s 1 ",),), "sharer": (("t 4",),)},
    )
    examples = Continuation(Made(*rows), 2).examples("train", 0)
    assert [(text_of(e.sharer), *e.answers) for e in examples] == [
        ("s", "1"), ("both", "0"), ("r", "2"), ("x", "3"), ("t", "4")
    ]  # fmt: skip
    assert len({example.id for example in examples}) == 5
    (alone,) = Continuation(Made({"shared": (("x 3",),)}), 2).examples("train", 1)
    assert alone.id == examples[3].id  # it is the text's own, wherever that stands


def test_texts_of_fewer_words_are_left_out() -> None:
    source = Made({"sharer": (FLAT, LONG)})
    assert len(cut(source, min_words=5)) == 2
    assert [answer for _, answer in cut(source, min_words=6)] == ["Three is here."]
    assert len(cut(source, min_words=10)) == 1
    with pytest.raises(DataError, match="train split of Continuation of Made is empty: no passage has min_words=11 wo"):
        cut(source, min_words=11)
    with pytest.raises(SettingError, match="min_words=1 must be at least 2"):
        Continuation(source, min_words=1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_is_made_from_the_other_sources_split(split: Split) -> None:
    assert cut(Made({"sharer": (LONG,)}), split) == [
        ("Title: One is here. Two is here.", f"Three is here. In {split} so.")
    ]


def test_the_receivers_prompt_is_never_without_tokens() -> None:
    """Also where the template is the question alone."""
    tokenizer = load_tokenizer(ModelSpec("tiny-receiver"))
    for settings in (PromptSettings(), PromptSettings(question="{question}")):
        examples = Continuation(Made({"sharer": (LONG,)}), 2).examples("train", 0)
        batch = Collator.of(settings, tokenizer, tokenizer).train(examples)
        assert batch.receiver.ids.shape[1] > 0
        assert batch.last.shape == (1, 1)


@needs_real_data
def test_real_paragraphs_are_cut_into_two_halves_that_give_them_back() -> None:
    source = HotpotQA(*[str(REAL / "hotpotqa_dev.jsonl.gz")] * 2, validation_size=20)
    read = {
        "".join(passage).strip() for example in source.examples("train", 42)
        for passage in example.sharer + example.receiver
    }  # fmt: skip
    examples = Continuation(source).examples("train", 42)
    assert len({example.id for example in examples}) == len(examples) > 1000
    assert list(examples) == list(Continuation(source).examples("train", 42))
    for example in examples:
        told, rest = text_of(example.sharer), example.answers[0]
        assert any(f"{told}{blank}{rest}" in read for blank in (" ", "  ", "\n", "\xa0"))
        assert len(f"{told} {rest}".split()) >= 40
