from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.data.sources import HotpotQA
from lcf_lightning.errors import SettingError
from tests.data.sources.rows import REAL, gold_of, hotpot_row, hub_row, needs_real_data, write


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz", "rows.parquet"])
def test_hotpotqa_reads_the_hub_shape_from_any_file(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [hub_row(index) for index in range(3)])
    examples = HotpotQA(file, file).examples("test", 1)
    assert [(e.id, e.question, e.answers) for e in examples] == [
        (f"h{i}", f"question {i}?", (f"answer {i}",)) for i in range(3)
    ]
    for example in examples:
        assert (gold_of(example, example.sharer), gold_of(example, example.receiver)) == (1, 1)
        assert (len(example.sharer), len(example.receiver)) == (3, 3)
        assert example.partition == {"mode": "split", "seed": 1, "distractors": None}


def test_hotpotqa_reads_the_same_from_either_shape(tmp_path: Path) -> None:
    local = write(tmp_path / "local.jsonl", [hotpot_row(index) for index in range(4)])
    hub = write(tmp_path / "hub.parquet", [hub_row(index) for index in range(4)])
    ours = list(HotpotQA(local, local).examples("test", 2))
    assert ours == list(HotpotQA(hub, hub).examples("test", 2))
    assert len(ours) == 4


def test_hotpotqa_reads_the_original_shape(tmp_path: Path) -> None:
    """As hotpotqa.github.io publishes it: ``supporting_facts`` as pairs, and no list of titles."""
    row = hotpot_row(0)
    row["supporting_facts"] = [[title, 0] for title in row.pop("supporting_titles")]
    file = write(tmp_path / "original.jsonl", [row])
    (example,) = HotpotQA(file, file).examples("test", 0)
    assert gold_of(example, example.sharer) == 1
    assert gold_of(example, example.receiver) == 1


def test_hotpotqa_keeps_titles_sentences_and_reading_order(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(0)])
    for seed in range(5):
        (example,) = HotpotQA(file, file).examples("test", seed)
        passages = [(f"T0.{p}: ", f"First of {p}.", f" Second of {p}.") for p in range(6)]
        assert sorted(example.sharer + example.receiver) == passages
        assert list(example.sharer) == sorted(example.sharer)
        assert list(example.receiver) == sorted(example.receiver)


@pytest.mark.parametrize(("distractors", "each"), [(0, (1, 1)), (1, (2, 1)), (2, (2, 2)), (4, (3, 3)), (None, (3, 3))])
def test_hotpotqa_divides_the_distractors(tmp_path: Path, distractors: int | None, each: tuple[int, int]) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(8)])
    for example in HotpotQA(file, file, distractors=distractors).examples("test", 0):
        assert (len(example.sharer), len(example.receiver)) == each
        assert (gold_of(example, example.sharer), gold_of(example, example.receiver)) == (1, 1)


def test_hotpotqa_draws_its_distractors_by_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(0)])
    source = HotpotQA(file, file, distractors=1)
    drawn = {seed: list(source.examples("test", seed)) for seed in range(12)}
    assert drawn[3] == list(source.examples("test", 3))
    assert len({tuple(sorted(e.sharer + e.receiver)) for (e,) in drawn.values()}) > 1
    assert {("T0.1: ", "First of 1.", " Second of 1.") in e.sharer for (e,) in drawn.values()} == {True, False}


@pytest.mark.parametrize(("kind", "expected"), [("bridge", [0, 2]), ("comparison", [1]), (None, [0, 1, 2])])
def test_hotpotqa_filters_by_question_type(tmp_path: Path, kind: str | None, expected: list[int]) -> None:
    rows = [hotpot_row(0), hotpot_row(1, "comparison"), hotpot_row(2)]
    file = write(tmp_path / "rows.jsonl", rows)
    ids = [example.id for example in HotpotQA(file, file, question_type=kind).examples("test", 0)]
    assert ids == [f"h{index}" for index in expected]
    assert ids[0] in {row["id"] for row in rows}


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"distractors": -1}, "distractors=-1 must be at least 0, or null"),
        ({"question_type": "yesno"}, "question_type='yesno' must be bridge, comparison or null"),
        ({"train_limit": 0}, "train_limit=0 must be at least 1, or null"),
        ({"test_limit": -2}, "test_limit=-2 must be at least 1, or null"),
        ({"validation_size": 0}, "validation_size=0 must be a number of rows of at least 1"),
    ],
)
def test_hotpotqa_settings_out_of_range_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        HotpotQA(**setting)


@needs_real_data
def test_real_hotpotqa_gives_each_side_a_supporting_paragraph() -> None:
    file = str(REAL / "hotpotqa_dev.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    pairs = HotpotQA(file, file, distractors=0).examples("test", 42)
    assert len(pairs) == 197
    for example in pairs:
        titles = [passages[0][0].removesuffix(": ") for passages in (example.sharer, example.receiver)]
        assert (len(example.sharer), len(example.receiver)) == (1, 1)
        assert sorted(titles) == sorted(rows[example.id]["supporting_titles"])


@needs_real_data
def test_real_hotpotqa_halves_are_balanced() -> None:
    file = str(REAL / "hotpotqa_dev.jsonl.gz")
    examples = HotpotQA(file, file, distractors=None).examples("test", 42)
    sizes = Counter((len(example.sharer), len(example.receiver)) for example in examples)
    assert len(examples) == 197
    assert sizes.most_common(1)[0][0] == (5, 5)
    assert all(sharer - receiver in (0, 1) for sharer, receiver in sizes)
