"""bAbI as the hub keeps it: a story a row, with its questions among the sentences."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from lcf_lightning.data.sources import BAbI
from tests.data.sources.rows import text_of

LINES = [
    (0, "Mary moved to the bathroom.", [], ""),
    (0, "John went to the hallway.", [], ""),
    (1, "Where is Mary?", ["1"], "bathroom"),
    (0, "Daniel went to the office.", [], ""),
    (1, "Where is Daniel?", ["4"], "office"),
]


def story() -> dict[str, Any]:
    columns = [list(column) for column in zip(*LINES, strict=True)]
    named = dict(zip(("type", "text", "supporting_ids", "answer"), columns, strict=True))
    return {"story": {"id": [str(n + 1) for n in range(len(LINES))], **named}}


def test_each_question_is_a_row_with_all_that_was_said_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*location: object, **options: object) -> datasets.Dataset:
        asked.append((*location, options))
        return datasets.Dataset.from_list([story()] * 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = BAbI(validation_size=1)
    test = source.examples("test", 42)
    hub = {"split": "test", "data_dir": "en-10k-qa1", "revision": "refs/convert/parquet"}
    assert asked == [("facebook/babi_qa", None, hub)]
    assert [example.id for example in test] == [f"babi/qa1/test/{n}" for n in range(4)]
    assert [example.answers for example in test] == [("bathroom",), ("office",)] * 2
    assert text_of(test[0].sharer) == "Mary moved to the bathroom.John went to the hallway."
    assert text_of(test[1].sharer).endswith("Daniel went to the office.")
    assert test[1].question == "Where is Daniel?"
    split = BAbI(partition="split").examples("test", 42)[1]
    assert "Daniel went to the office." in text_of(split.sharer)
    assert "Daniel went to the office." not in text_of(split.receiver)
    assert len(source.examples("train", 42)) == 3
