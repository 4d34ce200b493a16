from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.data.sources import Chat
from lcf_lightning.errors import DataError, SettingError
from tests.data.sources.rows import REAL, needs_real_data, write


def hermes(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **fields}


def test_an_openhermes_row_is_its_last_exchange_after_the_earlier_ones(tmp_path: Path) -> None:
    row = hermes(
        ("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi"), ("human", " 2+2? "), ("gpt", "4"), ("human", "?")
    )  # fmt: skip
    (example,) = Chat("a/b", test=write(tmp_path / "rows.jsonl", [row])).examples("test", 0)
    assert (example.question, example.answers) == ("2+2?", ("4",))
    assert example.history == (("Be brief.\n\nHello", "Hi"),)
    assert example.shared == example.sharer == example.receiver == ()


def test_messages_and_instructions_are_understood(tmp_path: Path) -> None:
    messages = {"id": "m1", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (example,) = Chat("a/b", test=write(tmp_path / "a.jsonl", [messages])).examples("test", 0)
    assert (example.id, example.question, example.answers) == ("m1", "Hi", ("Ho",))
    dolly = [{"instruction": "Sum up.", "input": "A text. ", "output": "Text."},
             {"instruction": "Sum up.", "context": "", "response": "Nothing."}]  # fmt: skip
    for row, passages in zip(dolly, [(("A text.",),), ()], strict=True):
        (example,) = Chat("a/b", test=write(tmp_path / f"{len(passages)}.jsonl", [row])).examples("test", 0)
        assert (example.shared, example.sharer, example.receiver) == (passages, (), ())
        assert example.question == "Sum up."


def test_a_percent_is_held_out_and_tested_on_where_there_is_no_test_file(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hermes(("human", f"q{i}"), ("gpt", f"a{i}")) for i in range(300)])
    source = Chat(file)
    train, validation, test = ({e.id for e in source.examples(split, 3)} for split in ("train", "validation", "test"))
    assert (len(train), len(validation)) == (297, 3)
    assert test == validation
    assert not train & validation


def test_the_first_rows_are_taken_before_the_split(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hermes(("human", f"q{i}"), ("gpt", "a")) for i in range(50)])
    source = Chat(file, train_limit=10, validation_size=2)
    examples = [*source.examples("train", 0), *source.examples("validation", 0)]
    assert {example.question for example in examples} == {f"q{i}" for i in range(10)}
    assert len(examples) == 10


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (hermes(("gpt", "Hi"), ("human", "Hello")), "must take turns"),
        (hermes(("human", "Hello")), "no assistant turn"),
        (hermes(("robot", "Hello"), ("gpt", "Hi")), "KeyError 'robot'"),
        ({"question": "Hello"}, "KeyError 'instruction'"),
        ({"instruction": "Say", "input": 5, "output": "It."}, "AttributeError"),
        ({"conversations": ["a", "b"]}, "AttributeError"),
    ],
)
def test_rows_that_are_no_chat_are_named(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=f"Chat cannot understand row 'r7'.*{match}"):
        Chat("a/b", test=write(tmp_path / "rows.jsonl", [{"id": "r7", **row}])).examples("test", 0)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match="train_limit=1 must be at least 2"):
        Chat(train_limit=1)
    with pytest.raises(SettingError, match="validation_size=-0.5 must be a number of rows of at least 1, or a f"):
        Chat(validation_size=-0.5)
    with pytest.raises(SettingError, match=r"validation_size=2.5 must be a number of rows"):
        Chat(validation_size=2.5)


@needs_real_data
def test_real_dolly_loads() -> None:
    source = Chat(str(REAL / "dolly_3k.jsonl.gz"))
    train, validation = source.examples("train", 0), source.examples("validation", 0)
    assert (len(train), len(validation)) == (2966, 30)
    assert 0.1 < sum(bool(example.shared) for example in train) / len(train) < 0.9
    assert all(example.question and example.answers[0] for example in train)
