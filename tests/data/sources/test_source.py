from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.data.sources import BAbI, HotpotQA, RowSource, SQuAD
from lcf_lightning.errors import DataError
from tests.data.sources.rows import babi_row, hotpot_row, hub_row, squad_row, write


def test_validation_rows_are_held_out_of_training(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [hotpot_row(index) for index in range(20)])
    test = write(tmp_path / "test.jsonl", [hotpot_row(index) for index in range(50, 53)])
    source = HotpotQA(train, test, validation_size=6)
    ids = {split: [e.id for e in source.examples(split, 1)] for split in ("train", "validation", "test")}
    assert (len(ids["train"]), len(ids["validation"])) == (14, 6)
    assert {*ids["train"], *ids["validation"]} == {f"h{index}" for index in range(20)}
    assert ids["test"] == ["h50", "h51", "h52"]
    assert set(ids["validation"]) != {e.id for e in source.examples("validation", 2)}
    assert list(source.examples("train", 1)) == list(source.examples("train", 1))


def test_limits_take_fewer_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(12)])
    free, limited = HotpotQA(file, file, validation_size=4), HotpotQA(file, file, None, "bridge", 4, 3, 2)
    assert list(limited.examples("train", 0)) == list(free.examples("train", 0))[:3]
    assert list(limited.examples("test", 0)) == list(free.examples("test", 0))[:2]
    assert list(limited.examples("validation", 0)) == list(free.examples("validation", 0))
    assert (len(free.examples("train", 0)), len(free.examples("test", 0))) == (8, 12)


def test_a_limit_counts_rows_of_the_chosen_type(tmp_path: Path) -> None:
    rows = [hotpot_row(index, "comparison" if index < 5 else "bridge") for index in range(10)]
    file = write(tmp_path / "rows.jsonl", rows)
    source = HotpotQA(file, file, validation_size=1, test_limit=2)
    assert [example.id for example in source.examples("test", 0)] == ["h5", "h6"]
    assert len(source.examples("train", 0)) == 4


@pytest.mark.parametrize("suffix", ["json", "jsonl", "json.gz", "jsonl.gz", "parquet"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    there = write(tmp_path / "there.jsonl", [hotpot_row(0)])
    missing = str(tmp_path / f"gone.{suffix}")
    with pytest.raises(DataError, match=rf"^train='.*gone\.{suffix}' is not a file; give a hub id"):
        HotpotQA(missing, there).examples("train", 0)
    with pytest.raises(DataError, match=rf"^test='.*gone\.{suffix}' is not a file"):
        HotpotQA(there, missing).examples("test", 0)


@pytest.mark.parametrize("location", ["hotpot", "a/b/c", "", "rows.csv", "/nowhere/at/all"])
def test_what_is_neither_file_nor_hub_id_is_refused(location: str) -> None:
    for setting, split in (("train", "train"), ("train", "validation"), ("test", "test")):
        with pytest.raises(DataError, match=f"^{setting}='{location}' must be a hub id .* or a .json, .jsonl, .* file"):
            HotpotQA(location, location).examples(split, 0)  # type: ignore[arg-type]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a hub id"):
        HotpotQA(str(tmp_path), str(tmp_path)).examples("test", 0)
    with pytest.raises(DataError, match="must be a hub id"):
        SQuAD(str(tmp_path), str(tmp_path)).examples("validation", 0)


def test_a_hub_id_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(DataError, match="^test='nobody/nothing' cannot be read: "):
        HotpotQA("nobody/nothing", "nobody/nothing").examples("test", 0)
    with pytest.raises(DataError, match="^train='nobody/nothing' cannot be read: "):
        SQuAD("nobody/nothing", "nobody/nothing").examples("train", 0)


@pytest.mark.parametrize(
    "name", ["bad.json", "bad.jsonl", "bad.json.gz", "bad.jsonl.gz", "bad.parquet"]
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'\xff\x00garbage {"id": ' * 20)
    with pytest.raises(DataError, match=rf"^test='.*{name}' cannot be read: .+") as caught:
        HotpotQA(str(tmp_path / name), str(tmp_path / name)).examples("test", 0)
    assert "\n" not in str(caught.value)
    assert "An error occurred" not in str(caught.value), "datasets says no more; what it comes from does"


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.parquet"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    file = Path(write(tmp_path / name, [hub_row(index) for index in range(50)]))
    assert len(HotpotQA(str(file), str(file)).examples("test", 0)) == 50
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"^test='.*{name}' cannot be read: "):
        HotpotQA(str(file), str(file)).examples("test", 0)


@pytest.mark.parametrize("depth", [3_000, 30_000])
@pytest.mark.parametrize("name", ["deep.jsonl", "deep.jsonl.gz", "deep.json"])
@pytest.mark.parametrize("opening", ["[", "[\n", '["]\\"]",', '{"[":\n'])
def test_what_is_nested_too_deep_is_refused_before_a_reader_falls_over_it(
    tmp_path: Path, name: str, depth: int, opening: str
) -> None:
    """The one that `datasets` uses ends the process, from about 20,000 levels on."""
    content = f'{{"x": {opening * depth}{"]" * depth}}}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"^test=.* cannot be read: line \d+ is nested too deep"):
        HotpotQA(str(tmp_path / name), str(tmp_path / name)).examples("test", 0)


def test_brackets_in_texts_are_no_levels(tmp_path: Path) -> None:
    rows = [hub_row(index) | {"question": '[{"\\' * 400} for index in range(9)]
    file = write(tmp_path / "rows.jsonl", rows)
    assert len(HotpotQA(file, file).examples("test", 0)) == 9


def test_a_gzip_file_with_another_bit_is_named(tmp_path: Path) -> None:
    content = gzip.compress("".join(f"{json.dumps(hub_row(index))}\n" for index in range(50)).encode())
    for place in range(20, len(content) - 10, len(content) // 25):
        flipped = bytearray(content)
        flipped[place] ^= 16
        (tmp_path / f"bad{place}.jsonl.gz").write_bytes(bytes(flipped))
        file = str(tmp_path / f"bad{place}.jsonl.gz")
        with suppress(DataError):  # and nothing else; some bits say nothing
            assert len(HotpotQA(file, file).examples("test", 0)) == 50


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "nothing.jsonl", [])
    with pytest.raises(DataError, match="^test"):
        HotpotQA(file, file).examples("test", 0)
    with pytest.raises(DataError, match="^train"):
        HotpotQA(file, file).examples("train", 0)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(4)])
    with pytest.raises(DataError, match="test split of HotpotQA is empty: it has no rows; give more"):
        HotpotQA(file, file, question_type="comparison").examples("test", 0)
    with pytest.raises(DataError, match="train split of HotpotQA is empty: validation_size=4 of 4 rows"):
        HotpotQA(file, file, validation_size=4).examples("train", 0)
    assert len(HotpotQA(file, file, validation_size=3).examples("train", 0)) == 1


MAKERS: dict[str, tuple[Callable[..., RowSource], Callable[[int], dict[str, Any]]]] = {
    "HotpotQA": (HotpotQA, hub_row), "SQuAD": (SQuAD, squad_row), "BAbI": (BAbI, babi_row)
}  # fmt: skip
NEEDED = [
    *(("HotpotQA", field) for field in ("id", "question", "answer", "type", "context", "supporting_facts")),
    *(("SQuAD", field) for field in ("id", "question", "answers", "answer_start", "context")),
    *(("BAbI", field) for field in ("id", "task", "story", "question", "answer", "supporting")),
]


@pytest.mark.parametrize(("name", "field"), NEEDED)
def test_a_row_without_a_needed_field_is_refused(tmp_path: Path, name: str, field: str) -> None:
    source, row = MAKERS[name]
    broken = {key: value for key, value in row(0).items() if key != field}
    file = write(tmp_path / "rows.jsonl", [broken])
    with pytest.raises(DataError, match=f"{name} cannot understand row .*{field}"):
        source(file, file).examples("test", 0)


@pytest.mark.parametrize(
    ("name", "field"), [("HotpotQA", "question"), ("HotpotQA", "answer"), ("SQuAD", "question"), ("BAbI", "answer")]
)
def test_a_row_with_an_empty_field_is_refused(tmp_path: Path, name: str, field: str) -> None:
    """HotpotQA's own test split has no answers; where some rows lack a field, `datasets` fills in nulls."""
    source, row = MAKERS[name]
    file = write(tmp_path / "rows.jsonl", [row(0), {k: v for k, v in row(1).items() if k != field}])
    with pytest.raises(DataError, match=f"{name} cannot understand row '{row(1)['id']}'"):
        source(file, file).examples("test", 0)


@pytest.mark.parametrize(
    "context", [{"title": ["A", "B"], "sentences": [["x"]]}, ["one string", "a paragraph"], "text", 3]
)
def test_a_context_of_another_shape_is_refused(tmp_path: Path, context: object) -> None:
    row = hotpot_row(0) | {"context": context}
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match="HotpotQA cannot understand row 'h0'"):
        HotpotQA(file, file).examples("test", 0)


def test_squad_answers_that_are_not_in_the_text_are_refused(tmp_path: Path) -> None:
    for change in ({"answer_start": [5000, 5000]}, {"answers": [], "answer_start": []}):
        file = write(tmp_path / f"rows{len(change)}.jsonl", [squad_row(0) | change])
        with pytest.raises(DataError, match="SQuAD cannot understand row 's0'"):
            SQuAD(file, file).examples("test", 0)


def test_a_fraction_of_the_rows_is_held_out_and_at_least_one(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(12)])
    source = HotpotQA(file, file, validation_size=0.1)  # type: ignore[arg-type]
    assert (len(source.examples("train", 0)), len(source.examples("validation", 0))) == (10, 2)


def test_examples_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    """Rows stay in the table; other processes can be given them."""
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(4)])
    examples = HotpotQA(file, file).examples("test", 0)
    assert examples[1] == examples[1]
    assert examples[1] is not examples[1]
    assert [example.id for example in pickle.loads(pickle.dumps(examples))] == ["h0", "h1", "h2", "h3"]
    with pytest.raises(TypeError, match="slice"):
        examples[:2]
