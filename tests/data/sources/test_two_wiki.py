from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.data.sources import TwoWikiMultihopQA
from lcf_lightning.errors import DataError, SettingError
from tests.data.sources.rows import REAL, needs_real_data, text_of, write

GOLD = {"T.1", "T.2", "T.4", "T.5"}


def row(index: int, kind: str = "compositional", blank: str = "") -> dict[str, Any]:
    """Paragraphs 1, 2, 4 and 5 of six hold the answer."""
    context = [[f"T.{p}", [f"First of {p}.", f"{blank}Second of {p}.", f"{blank}Third."]] for p in range(6)]
    return {
        "id": f"w{index}", "question": f"question {index}?", "answer": f"answer {index}", "type": kind,
        "supporting_facts": [[title, 0] for title in sorted(GOLD)], "context": context,
    }  # fmt: skip


@pytest.mark.parametrize("blank", ["", " "])
def test_four_supporting_paragraphs_are_dealt_in_turn_and_words_do_not_run_together(tmp_path: Path, blank: str) -> None:
    file = write(tmp_path / "rows.jsonl", [row(0, blank=blank)])
    whole = [(f"T.{p}: ", f"First of {p}.", f" Second of {p}.", " Third.") for p in range(6)]
    dealt = set()
    for seed in range(8):
        (example,) = TwoWikiMultihopQA(test=file).examples("test", seed)
        assert (example.id, example.question, example.answers) == ("w0", "question 0?", ("answer 0",))
        assert sorted(example.sharer + example.receiver) == whole
        for side in (example.sharer, example.receiver):
            assert len({passage[0].removesuffix(": ") for passage in side} & GOLD) == 2
        dealt.add(example.sharer)
    assert len(dealt) > 1


def test_the_hubs_shape_reads_the_same(tmp_path: Path) -> None:
    hub = row(0)
    hub["supporting_facts"] = {"title": sorted(GOLD), "sent_id": [0] * 4}
    hub["context"] = {"title": [t for t, _ in hub["context"]], "sentences": [s for _, s in hub["context"]]}
    files = write(tmp_path / "local.jsonl", [row(0)]), write(tmp_path / "hub.parquet", [hub])
    local, from_hub = (list(TwoWikiMultihopQA(test=file, distractors=1).examples("test", 3)) for file in files)
    assert local == from_hub
    assert len(local[0].sharer + local[0].receiver) == 5


def test_question_types_are_kept_by_name(tmp_path: Path) -> None:
    kinds = ["compositional", "comparison", "bridge_comparison", "inference"]
    file = write(tmp_path / "rows.jsonl", [row(place, kind) for place, kind in enumerate(kinds)])
    assert [e.id for e in TwoWikiMultihopQA(test=file, question_type="inference").examples("test", 0)] == ["w3"]
    assert len(TwoWikiMultihopQA(test=file).examples("test", 0)) == 4
    with pytest.raises(SettingError, match="question_type='bridge' must be one of compositional, comparison, bridge_c"):
        TwoWikiMultihopQA(test=file, question_type="bridge")


def test_it_trains_on_the_training_file_only(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", [row(i) for i in range(3)]), write(tmp_path / "test.jsonl", [row(9)])
    source = TwoWikiMultihopQA(train=train, test=test, validation_size=1)
    ids = [{example.id for example in source.examples(split, 0)} for split in ("train", "validation", "test")]
    assert [*map(len, ids)] == [2, 1, 1]
    assert ids[0] | ids[1] == {"w0", "w1", "w2"}
    with pytest.raises(DataError, match="train=null of TwoWikiMultihopQA must be a hub id or a file"):
        TwoWikiMultihopQA(test=test).examples("train", 0)


@needs_real_data
def test_real_2wikimultihopqa_gives_each_side_half_of_what_supports_the_answer() -> None:
    file = REAL / "2wikimultihopqa.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    examples = TwoWikiMultihopQA(test=str(file), distractors=0).examples("test", 42)
    sizes = Counter((rows[e.id]["type"], len(e.sharer), len(e.receiver)) for e in examples)
    assert sizes == {
        ("compositional", 1, 1): 284, ("comparison", 1, 1): 216, ("bridge_comparison", 2, 2): 135,
        ("inference", 1, 1): 29,
    }  # fmt: skip
    for example in examples:
        context = dict(rows[example.id]["context"])
        for passage in example.sharer + example.receiver:
            title = passage[0].removesuffix(": ")
            assert text_of((passage,)) == f"{title}: {' '.join(context[title])}"
