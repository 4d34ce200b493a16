from __future__ import annotations

from pathlib import Path

import pytest

from lcf_lightning.data.sources import BAbI, SQuAD
from lcf_lightning.errors import SettingError
from tests.data.sources.rows import REAL, babi_row, needs_real_data, text_of, write


def test_babi_reads_its_task_only(tmp_path: Path) -> None:
    rows = [babi_row(0), babi_row(1, "qa2"), babi_row(2)]
    file = write(tmp_path / "rows.jsonl.gz", rows)
    assert [example.id for example in BAbI(file, file).examples("test", 0)] == ["b0", "b2"]
    (example,) = BAbI(file, file, task="qa2").examples("test", 0)
    assert (example.id, example.question, example.answers) == ("b1", "where?", ("room 4",))
    assert example.sharer == tuple((sentence,) for sentence in rows[1]["story"])
    assert example.receiver == ()


def test_babi_splits_the_story(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [babi_row(0)])
    for seed in range(8):
        (example,) = BAbI(file, file, partition="split").examples("test", seed)
        assert ("Mary moved to room 4.",) in example.sharer
        assert (len(example.sharer), len(example.receiver)) == (3, 3)


def test_unknown_tasks_and_partitions_are_refused() -> None:
    with pytest.raises(SettingError, match="task='qa4' must be qa1, qa2 or qa3"):
        BAbI("a.jsonl", "a.jsonl", task="qa4")
    with pytest.raises(SettingError, match="partition='both' must be one of split, sharer"):
        BAbI("a.jsonl", "a.jsonl", partition="both")
    with pytest.raises(SettingError, match="partition='both' must be one of split, sharer"):
        SQuAD(partition="both")


@needs_real_data
def test_real_babi_loads() -> None:
    source = BAbI(str(REAL / "babi_train.jsonl.gz"), str(REAL / "babi_test.jsonl.gz"), partition="split")
    tests, train = source.examples("test", 0), source.examples("train", 0)
    assert len(tests) == 1000
    assert len(train) == 2000 - 128
    assert all(example.answers[0] in text_of(example.sharer) for example in (*tests, *train))
