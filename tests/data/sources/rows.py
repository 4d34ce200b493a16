"""Rows and files as the sources read them: what the tests of this folder share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lcf_lightning.data.example import Example, Passage

REAL = Path(__file__).parents[4] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the files of shared/data are not on this machine")
Rows = list[dict[str, Any]]
CONTEXT = "Ada likes tea. Ben sat down.  He met 3 cats! Was it J. Smith? Yes."


def write(path: Path, rows: Rows) -> str:
    """The rows as a file of the kind that its name tells."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def hotpot_row(index: int, kind: str = "bridge") -> dict[str, Any]:
    """A row in the shape of the files in shared/data; paragraphs 1 and 4 hold the answer."""
    context = [[f"T{index}.{p}", [f"First of {p}.", f" Second of {p}."]] for p in range(6)]
    return {
        "id": f"h{index}", "question": f"question {index}?", "answer": f"answer {index}", "type": kind,
        "context": context, "supporting_titles": [f"T{index}.1", f"T{index}.4"], "supporting_facts": None,
    }  # fmt: skip


def hub_row(index: int, kind: str = "bridge") -> dict[str, Any]:
    row = hotpot_row(index, kind)
    titles = row.pop("supporting_titles")
    row["supporting_facts"] = {"title": [titles[0], *titles], "sent_id": [0, 1, 0]}
    row["context"] = {"title": [t for t, _ in row["context"]], "sentences": [s for _, s in row["context"]]}
    return row


def squad_row(index: int, answer: str = "Ben") -> dict[str, Any]:
    start = CONTEXT.index(answer)
    return {
        "id": f"s{index}", "context": CONTEXT, "question": "who?", "answers": [answer, answer],
        "answer_start": [start, start],
    }  # fmt: skip


def squad_hub_row(index: int) -> dict[str, Any]:
    row = squad_row(index)
    answers = {"text": row["answers"], "answer_start": row.pop("answer_start")}
    return {**row, "answers": answers, "context": f"{CONTEXT} It was {index}.", "question": f"who is {index}?"}


def babi_story(index: int) -> dict[str, Any]:
    """A story of the hub's bAbI, with one question at its end."""
    texts = [f"Mary moved to room {index + place}." for place in range(6)]
    return {"story": {
        "id": [str(place + 1) for place in range(7)], "type": [0] * 6 + [1], "text": [*texts, f"where {index}?"],
        "supporting_ids": [[]] * 6 + [["5"]], "answer": [""] * 6 + [f"room {index + 4}"],
    }}  # fmt: skip


def babi_row(index: int, task: str = "qa1") -> dict[str, Any]:
    story = [f"Mary moved to room {place}." for place in range(6)]
    return {
        "id": f"b{index}", "task": task, "story": story, "question": "where?", "answer": "room 4", "supporting": [4]
    }  # fmt: skip


def text_of(passages: tuple[Passage, ...]) -> str:
    return "".join("".join(passage) for passage in passages)


def gold_of(example: Example, passages: tuple[Passage, ...]) -> int:
    number = example.id.removeprefix("h")
    return sum(passage[0] in (f"T{number}.1: ", f"T{number}.4: ") for passage in passages)
