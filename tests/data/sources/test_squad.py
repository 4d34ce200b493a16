from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcf_lightning.data.parsing import split_sentences
from lcf_lightning.data.sources import SQuAD
from tests.data.sources.rows import CONTEXT, REAL, needs_real_data, squad_row, text_of, write


@pytest.mark.parametrize("answer", ["Ada", "Ben", "cats", "Smith", "Yes"])
def test_squad_gives_the_answers_sentence_to_the_sharer(tmp_path: Path, answer: str) -> None:
    file = write(tmp_path / "rows.jsonl", [squad_row(0, answer)])
    for seed in range(8):
        (example,) = SQuAD(file, file).examples("test", seed)
        assert answer in text_of(example.sharer)
        assert answer not in text_of(example.receiver)
        assert example.answers == (answer,)
        assert 0 <= len(example.sharer) - len(example.receiver) <= 1


def test_squad_follows_the_offset_not_the_word(tmp_path: Path) -> None:
    """The answer's word may stand in several sentences."""
    row = squad_row(0) | {"context": "Ben ran. Ben sat. Ben ate. Ben left.", "answers": ["Ben"], "answer_start": [18]}
    file = write(tmp_path / "rows.jsonl", [row])
    sharers = [SQuAD(file, file).examples("test", seed)[0].sharer for seed in range(12)]
    assert all((" Ben ate.",) in sharer for sharer in sharers)
    assert len(set(sharers)) > 1


def test_squad_reads_the_same_from_either_shape(tmp_path: Path) -> None:
    local = [squad_row(index) for index in range(3)]
    hub = [row | {"answers": {"text": row["answers"], "answer_start": row["answer_start"]}} for row in local]
    for row in hub:
        del row["answer_start"]
    first, second = write(tmp_path / "local.jsonl", local), write(tmp_path / "hub.parquet", hub)
    assert list(SQuAD(first, first).examples("test", 0)) == list(SQuAD(second, second).examples("test", 0))
    assert len(SQuAD(second, second).examples("test", 0)) == 3


def test_squad_keeps_the_whole_paragraph(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [squad_row(0)])
    (whole,) = SQuAD(file, file, partition="sharer").examples("test", 0)
    (split,) = SQuAD(file, file, partition="split").examples("test", 0)
    assert text_of(whole.sharer) == CONTEXT
    assert whole.receiver == ()
    assert sorted(split.sharer + split.receiver) == sorted(whole.sharer)
    assert (whole.partition["mode"], split.partition["mode"]) == ("sharer", "split")


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert split_sentences(CONTEXT) == [
        "Ada likes tea.", " Ben sat down.", "  He met 3 cats!", " Was it J.", " Smith?", " Yes."
    ]  # fmt: skip
    assert split_sentences('It cost 3.5 dollars e.g. here. "So?" he said.') == [
        "It cost 3.5 dollars e.g. here.", ' "So?" he said.'
    ]  # fmt: skip
    assert split_sentences("") == []


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet='aB1.!? \n"(', max_size=40))
def test_sentences_join_to_their_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentences)


@needs_real_data
def test_real_squad_answers_are_with_the_sharer() -> None:
    """Also where the answer runs on after what looks like a sentence's end."""
    file = str(REAL / "squad_v1_subset.jsonl.gz")
    examples = SQuAD(file, file).examples("test", 42)
    lost = [example.id for example in examples if example.answers[0] not in text_of(example.sharer)]
    assert len(examples) == 4709
    assert lost == []
