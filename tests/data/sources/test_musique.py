from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.data.example import Passage
from lcf_lightning.data.sources import MuSiQue
from lcf_lightning.errors import DataError, SettingError
from tests.data.sources.rows import REAL, needs_real_data, text_of, write


def row(index: int = 0, **fields: Any) -> dict[str, Any]:
    """Paragraphs 1, 3 and 4 of six hold the answer; all have the same title."""
    return {
        "id": f"m{index}", "question": "who?", "answer": "Ada", "answer_aliases": ["Ada L.", "Ada", "A. L."],
        "supporting": [1, 3, 4], "context": [["T", f"First of {p}. Second of {p}."] for p in range(6)], **fields,
    }  # fmt: skip


def gold(passages: tuple[Passage, ...], places: tuple[int, ...] = (1, 3, 4)) -> int:
    return sum(f"First of {place}." in passage for passage in passages for place in places)


def test_supporting_paragraphs_are_dealt_in_turn_by_their_places(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [row()])
    whole = [("T: ", f"First of {p}.", f" Second of {p}.") for p in range(6)]
    dealt = set()
    for seed in range(8):
        (example,) = MuSiQue(test=file).examples("test", seed)
        assert (example.id, example.question, example.answers) == ("m0", "who?", ("Ada", "Ada L.", "A. L."))
        assert sorted(example.sharer + example.receiver) == whole
        assert (gold(example.sharer), gold(example.receiver)) == (2, 1)
        assert list(example.sharer) == sorted(example.sharer)
        dealt.add(example.sharer)
    assert len(dealt) > 1


@pytest.mark.parametrize(("distractors", "each"), [(0, (2, 1)), (1, (2, 2)), (None, (3, 3))])
def test_distractors_are_divided(tmp_path: Path, distractors: int | None, each: tuple[int, int]) -> None:
    file = write(tmp_path / "rows.jsonl", [row(index) for index in range(6)])
    for example in MuSiQue(test=file, distractors=distractors).examples("test", 0):
        assert (len(example.sharer), len(example.receiver)) == each
        assert (gold(example.sharer), gold(example.receiver)) == (2, 1)


def test_a_paragraph_may_be_a_list_and_aliases_may_be_missing(tmp_path: Path) -> None:
    lists = row(context=[[title, [text]] for title, text in row()["context"]])
    files = write(tmp_path / "texts.jsonl", [row()]), write(tmp_path / "lists.jsonl", [lists])
    texts, listed = (list(MuSiQue(test=file).examples("test", 1)) for file in files)
    assert texts == listed
    bare = row()
    del bare["answer_aliases"]
    (example,) = MuSiQue(test=write(tmp_path / "bare.jsonl", [bare])).examples("test", 1)
    assert example.answers == ("Ada",)


@pytest.mark.parametrize("supporting", [[], [-1, 2], [1, 6]])
def test_places_outside_the_context_are_refused(tmp_path: Path, supporting: list[int]) -> None:
    file = write(tmp_path / "rows.jsonl", [row(), row(1, supporting=supporting)])
    with pytest.raises(DataError, match="cannot understand row 'm1'.*must be places in a context of 6 paragraphs"):
        MuSiQue(test=file).examples("test", 0)


def test_distractors_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match="distractors=-1 must be at least 0, or null for all"):
        MuSiQue(test="rows.jsonl", distractors=-1)


@needs_real_data
def test_real_musique_gives_each_side_its_share_of_what_supports_the_answer() -> None:
    file = REAL / "musique.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    examples = MuSiQue(test=str(file), distractors=0).examples("test", 42)
    assert len(examples) == 300
    for example in examples:
        paragraphs = [rows[example.id]["context"][place] for place in rows[example.id]["supporting"]]
        assert len(example.sharer) - len(example.receiver) == len(paragraphs) % 2
        read = [text_of((passage,)) for passage in example.sharer + example.receiver]
        assert sorted(read) == sorted(f"{title}: {''.join(text)}" for title, text in paragraphs)
        assert any(example.answers[0].lower() in text.lower() for text in read)
