"""Rows that repeat one before them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import ModelSpec, SharedContextDataModule
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import Chat, MultipleChoice, RowSource
from lcf_lightning.data.sources.source import Split
from lcf_lightning.errors import DataError
from tests.data.sources.rows import REAL, needs_real_data, write


def chat_row(number: int) -> dict[str, Any]:
    return {"instruction": f"Say {number}.", "input": "", "output": f"{number}"}


def choice_row(number: int, **fields: Any) -> dict[str, Any]:
    return {"question": f"What is {number}?", "choices": [f"{number}", "none"], "answer": 0, **fields}


@pytest.mark.parametrize(("source", "row"), [(Chat, chat_row), (MultipleChoice, choice_row)])
def test_a_repeated_row_without_an_id_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: Callable[..., RowSource], row: Callable[[int], Any]
) -> None:
    file = write(tmp_path / "rows.jsonl", [row(number) for number in (1, 2, 1, 3, 1)])
    made = source(file, file, validation_size=1)
    with caplog.at_level("INFO"):
        assert [next(filter(str.isdigit, example.question)) for example in made.examples("test", 0)] == ["1", "2", "3"]
    assert "test split of" in caplog.text
    assert "2 rows without an id repeat others; left out" in caplog.text
    caplog.clear()
    assert len(made.examples("train", 0)) == 4  # what is trained on stays as it is
    assert caplog.text == ""


def test_rows_held_out_for_validation_are_looked_through_too(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [chat_row(number) for number in (1, 2, 1, 3)])
    for split in ("validation", "test"):
        assert len(Chat(file, validation_size=4).examples(split, 0)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [3, 1], ids=["another question", "the same"])
def test_ids_of_their_own_that_repeat_are_refused(tmp_path: Path, spec: Callable[[str], ModelSpec], last: int) -> None:
    file = write(tmp_path / "rows.jsonl", [choice_row(number, id=f"{number % 2}") for number in (1, 2, last)])
    data = SharedContextDataModule(
        MultipleChoice(), spec("llama"), spec("qwen3"), benchmarks={"arc": MultipleChoice(test=file)}
    )
    with pytest.raises(DataError, match="'arc/1' is the id of example 1 of benchmark 'arc' and of example 3 of bench"):
        data.setup("test")


class ByDocument(RowSource):
    """A source that takes its ids from a column of another name."""

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        return Example(row["document"], row["question"], ("a",))


def test_rows_that_share_an_id_and_ask_something_else_are_not_left_out(tmp_path: Path) -> None:
    """They are refused where ids must differ, and never dropped in silence."""
    rows = [{"document": "d", "question": "who?"}, {"document": "d", "question": "where?"}]
    file = write(tmp_path / "rows.jsonl", rows)
    assert len(ByDocument(None, file).examples("test", 0)) == 2


@needs_real_data
@pytest.mark.parametrize("split", ["validation", "test"])
def test_dolly_holds_two_rows_twice_and_can_be_evaluated(split: Split) -> None:
    examples = Chat(str(REAL / "dolly_3k.jsonl.gz"), validation_size=2996).examples(split, 0)
    assert len(examples) == len({example.id for example in examples}) == 2994
