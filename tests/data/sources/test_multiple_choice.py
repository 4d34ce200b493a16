from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from lcf_lightning.data.sources import Mixture, MultipleChoice
from lcf_lightning.errors import DataError, SettingError
from tests.data.sources.rows import REAL, needs_real_data, write

ROW = {"id": "q1", "question": " Why? ", "choices": ["Because", "No reason", "Who knows"], "answer": 1, "subject": "s"}
SHAPES: list[dict[str, Any]] = [
    ROW,
    {"id": "q1", "question_stem": "Why?", "answerKey": "2",
     "choices": {"text": ["Because", "No reason", "Who knows"], "label": ["1", "2", "3"]}},
    {"question_id": "q1", "question": "Why?", "options": ["Because", "No reason", "Who knows"], "answer": "B",
     "answer_index": 1},
]  # fmt: skip


@pytest.mark.parametrize("row", SHAPES, ids=["local", "arc", "mmlu_pro"])
def test_every_shape_gives_the_same_example(tmp_path: Path, row: dict[str, Any]) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    (letters,) = MultipleChoice(test=file).examples("test", 0)
    assert letters.question.startswith("Why?\nA. Because\nB. No reason\nC. Who knows\n")
    assert (letters.id, letters.choices, letters.answers) == ("q1", ("A", "B", "C"), ("B",))
    (texts,) = MultipleChoice(test=file, answer_with="text").examples("test", 0)
    assert (texts.question, texts.answers) == ("Why?", ("No reason",))
    assert texts.choices == ("Because", "No reason", "Who knows")


def test_ten_choices_have_ten_letters(tmp_path: Path) -> None:
    row = {**ROW, "choices": [f"choice {i}" for i in range(10)], "answer": 9}
    (example,) = MultipleChoice(test=write(tmp_path / "rows.jsonl", [row])).examples("test", 0)
    assert example.choices == tuple("ABCDEFGHIJ")
    assert example.answers == ("J",)
    assert "\nJ. choice 9\n" in example.question


def test_rows_with_an_error_are_left_out(tmp_path: Path) -> None:
    rows = [{**ROW, "id": name, "error_type": name} for name in ("ok", "wrong_groundtruth", "no_correct_answer")]
    examples = MultipleChoice(test=write(tmp_path / "rows.jsonl", rows)).examples("test", 0)
    assert [example.id for example in examples] == ["ok"]


def test_wrong_keys_are_corrected_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [
        {**ROW, "id": f"{error}{number}", "error_type": error, "correct_answer": key}
        for number, (error, key) in enumerate(
            [("ok", "0"), ("wrong_groundtruth", "C"), ("wrong_groundtruth", "0"), ("bad_options_clarity", "0"),
             ("no_correct_answer", None), ("expert", "0"),
             *(("wrong_groundtruth", odd) for odd in (None, "", "BC", "c", "7", "Because"))]
        )
    ]  # fmt: skip
    examples = MultipleChoice(test=write(tmp_path / "rows.jsonl", rows), errors="corrected").examples("test", 0)
    assert [example.answers[0] for example in examples] == ["B", "C", "A", "B"]


def test_the_listing_is_a_setting(tmp_path: Path) -> None:
    row = {**ROW, "question": "Why {choices}?"}
    file = write(tmp_path / "rows.jsonl", [row])
    (example,) = MultipleChoice(test=file, listing="Q: {question}\n\nChoices:\n{choices}\n").examples("test", 0)
    assert example.question == "Q: Why {choices}?\n\nChoices:\nA. Because\nB. No reason\nC. Who knows\n"
    with pytest.raises(SettingError, match=r"listing='\{question\}' must hold \{choices\} exactly once"):
        MultipleChoice(test=file, listing="{question}")
    with pytest.raises(SettingError, match="errors='kept' must be one of left_out, corrected"):
        MultipleChoice(test=file, errors="kept")


def test_all_configurations_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: datasets.Dataset.from_list([{**ROW, "id": name}]) for name in ("anatomy", "virology")}
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda location: list(tables))
    monkeypatch.setattr(datasets, "load_dataset", lambda location, name, split: tables[name])
    examples = MultipleChoice(test="owner/name", hub_config="*").examples("test", 0)
    assert [example.id for example in examples] == ["anatomy", "virology"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"choices": ["one"] * 27}, "27 choices; between 1 and 26 are needed"),
        ({"answer": 3}, "answer 3 of 3 choices"),
        ({"answer": -1}, "answer -1 of 3 choices"),
        ({"answer": "Z"}, "ValueError 'Z' is not in list"),
        ({"answer": None}, "KeyError 'answer'"),
        ({"choices": ["one", " "]}, "an empty choice"),
    ],
)
def test_rows_that_make_no_sense_are_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=f"MultipleChoice cannot understand row 'q1'.*{match}"):
        MultipleChoice(test=write(tmp_path / "rows.jsonl", [{**ROW, **change}])).examples("test", 0)


def test_rows_without_an_id_get_one_of_their_own(tmp_path: Path) -> None:
    rows = [{key: value for key, value in ROW.items() if key != "id"}, {**ROW, "id": None, "question": "How?"}]
    source = MultipleChoice(test=write(tmp_path / "rows.jsonl", rows))
    ids = [example.id for example in source.examples("test", 0)]
    assert len(set(ids)) == 2
    assert ids == [example.id for example in source.examples("test", 5)]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="answer_with='number' must be one of letter, text"):
        MultipleChoice(answer_with="number")
    file = write(tmp_path / "rows.jsonl", [ROW])
    with pytest.raises(DataError, match="train=null of MultipleChoice must be a hub id or a file"):
        MultipleChoice(test=file).examples("train", 0)


def test_a_mixture_has_the_examples_of_all_its_sources(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", [{**ROW, "id": f"{n}{i}"} for i in range(5)]) for n in "ab"]
    mixture = Mixture([MultipleChoice(file, file, validation_size=1) for file in files])
    ids = [example.id for example in mixture.examples("test", 0)]
    assert ids == [f"{place}/{name}{i}" for place, name in enumerate("ab") for i in range(5)]
    assert [len(mixture.examples(split, 0)) for split in ("train", "validation")] == [8, 2]  # type: ignore[arg-type]
    assert str(mixture) == "Mixture of MultipleChoice (a.jsonl), MultipleChoice (b.jsonl)"
    with pytest.raises(SettingError, match=r"sources=\[\] must name at least one"):
        Mixture([])


@needs_real_data
@pytest.mark.parametrize(
    ("file", "rows", "most"),
    [
        ("arc_challenge_test.jsonl", 1172, 5), ("openbookqa_test.jsonl", 500, 4), ("mmlu_test.jsonl.gz", 5700, 4),
        ("mmlu_redux.jsonl.gz", 5330, 4), ("mmlu_pro_test.jsonl.gz", 2800, 10),
    ],
)  # fmt: skip
def test_real_benchmarks_load_whole(file: str, rows: int, most: int) -> None:
    examples = MultipleChoice(test=str(REAL / file)).examples("test", 0)
    assert len(examples) == rows
    assert max(len(example.choices) for example in examples) == most
    assert len({example.id for example in examples}) == rows
