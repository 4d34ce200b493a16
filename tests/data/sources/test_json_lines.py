"""Rows of one's own: what they may hold, what is said of others, and that they train the embedded pair."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.cli import main
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import JsonLines
from lcf_lightning.errors import DataError
from tests.data.sources.rows import write

CONFIGS = Path(__file__).parents[3] / "configs"


def row(index: int = 0, **fields: Any) -> dict[str, Any]:
    own = {"question": f"owns {index}", "answers": ["lamp"], "sharer": [f"owns {index} lamp ."], "receiver": []}
    return {**own, **fields}


def only(file: Path, **fields: Any) -> Example:
    (example,) = JsonLines(write(file, [row()]), write(file.with_stem("test"), [row(**fields)])).examples("test", 0)
    return example


def test_a_row_says_who_reads_what(tmp_path: Path) -> None:
    example = only(
        tmp_path / "rows.jsonl", id=7, question="Who has it?", answers=["Ada", "Ada L.", "Ada"], needs_sharer=False,
        sharer=[["Ada has it.", "Ben does not."], "It rains. It is late."], receiver="First line.\n\nSecond. Line.",
    )  # fmt: skip
    assert (example.id, example.question, example.answers) == ("7", "Who has it?", ("Ada", "Ada L."))
    assert example.sharer == (("Ada has it.", " Ben does not."), ("It rains.", " It is late."))
    assert example.receiver == (("First line.",), ("Second.", " Line."))
    assert not example.needs_sharer


def test_what_a_row_leaves_out(tmp_path: Path) -> None:
    example = only(tmp_path / "rows.jsonl", answers="lamp", receiver="")
    assert (example.answers, example.receiver, example.needs_sharer) == (("lamp",), (), True)
    assert len(example.id) == 16
    assert example.id != only(tmp_path / "others.jsonl", sharer=["owns 0 kite ."]).id


def test_rows_may_differ_in_their_shape_and_lines_be_blank(tmp_path: Path) -> None:
    rows = [row(0, sharer="a"), row(1, sharer=["a"]), row(2, sharer=[["a", "b"], "c"], id="x"), row(3, id=3)]
    lines = "\n\n".join(map(json.dumps, rows)) + "\n \n"
    plain, packed = tmp_path / "rows.json", tmp_path / "rows.jsonl.gz"
    plain.write_text(lines)
    packed.write_bytes(gzip.compress(lines.encode()))
    for file in (plain, packed):
        source = JsonLines(str(file), str(file), validation_size=1)
        found = list(source.examples("test", 0))
        assert [len(example.sharer) for example in found] == [1, 1, 2, 1]
        assert [example.id for example in found[2:]] == ["x", "3"]
        assert (len(source.examples("train", 0)), len(source.examples("validation", 0))) == (3, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question": " "}, r"question=' ' must be a text\."),
        ({"question": "half a \ud800"}, "question='half a .* must be a text"),
        ({"answers": []}, r"answers=\[\] must be a text, or a list of texts\."),
        ({"answers": [3]}, r"answers=\[3\] must be a text, or a list"),
        ({"sharer": []}, r"sharer=\[\] must be a text, or a list of passages: texts, or lists of sentences\."),
        ({"sharer": [["a", ["b"]]]}, r"sharer=\[\['a', \['b'\]\]\] must be"),
        ({"sharer": [[]]}, r"sharer=\[\[\]\] must be"),
        ({"receiver": None}, r"receiver=None must be .*; \[\] for nothing\."),
        ({"receiver": False}, "receiver=False must be"),
        ({"id": 1.5}, "id=1.5 must be a text or a whole number"),
        ({"id": True}, "id=True must be a text or a whole number"),
        ({"needs_sharer": "no"}, "needs_sharer='no' must be true or false"),
        (
            {"need_sharer": True},
            "field 'need_sharer' is unknown; a row holds question, answers, sharer, receiver, i",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write(good, [row()])
    bad.write_text("\n".join(["", json.dumps(row()), json.dumps(row(1, **change))]))
    with pytest.raises(DataError, match=rf"^test='.*bad\.jsonl', line 3: {problem}"):
        JsonLines(str(good), str(bad)).examples("test", 0)
    with pytest.raises(DataError, match=rf"^train='.*bad\.jsonl', line 3: {problem}"):
        JsonLines(str(bad)).examples("validation", 0)


@pytest.mark.parametrize("name", ["question", "answers", "sharer", "receiver"])
def test_a_missing_field_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "rows.jsonl", [row(), {key: value for key, value in row(1).items() if key != name}])
    with pytest.raises(DataError, match=f"line 2: field '{name}' is missing; a row needs question, answers, sharer, r"):
        JsonLines(file).examples("train", 0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "a",}', r"this is no JSON: .* \(column 1[78]\)"),
        ("[1]", r"a row must be an object with the fields question, answers, sharer, receiver, not \[1\]"),
        ("[" * 99_999, "this is no JSON: it is nested too deeply"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row())}\n{line}\n")
    with pytest.raises(DataError, match=f"line 2: {problem}"):
        JsonLines(str(file)).examples("train", 0)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    for location in (str(tmp_path / "rows.csv"), str(tmp_path / "gone.jsonl"), "owner/name", str(tmp_path)):
        with pytest.raises(DataError, match=r"^train='.*' must be an existing file, \.json, \.jsonl, \.json\.gz"):
            JsonLines(location).examples("train", 0)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="train split of JsonLines is empty"):
        JsonLines(str(tmp_path / "blank.jsonl")).examples("train", 0)


def test_a_row_that_repeats_another_is_treated_as_in_other_sources(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an id it is left out of an evaluation; with one it stays, and the data module refuses equal ids."""
    for id, kept in ((None, 2), ("x", 3)):
        ids = {} if id is None else {"id": id}
        file = write(tmp_path / f"{kept}.jsonl", [row(0, **ids), row(1), row(0, **ids)])
        with caplog.at_level("INFO"):
            assert len(JsonLines(file, file).examples("test", 0)) == kept
    assert caplog.text.count("1 rows without an id repeat others; left out") == 1


def test_my_pair_trains_on_a_file_of_ones_own(tmp_path: Path) -> None:
    """The config that README names, its three marked lines changed; the embedded pair knows no chats."""
    facts = product(("ada", "ben", "cleo", "dan"), ("lamp", "kite", "harp", "drum"))
    rows = [
        row(question=f"owns {who}", answers=what, sharer=[f"owns {who} {what} ."], receiver="finds eva bell .", id=i)
        for i, (who, what) in enumerate(facts)
    ]
    main([
        "fit", "--config", str(CONFIGS / "my_pair.yaml"), "--model.sharer.path", "tiny-sharer",
        "--model.receiver.path", "tiny-receiver", "--data.source.train", write(tmp_path / "own.jsonl", rows),
        "--data.prompts.chat", "false", "--data.batch_size", "4", "--data.eval_batch_size", "2",
        "--model.adapter.d", "8", "--model.max_new_tokens", "2", "--trainer.max_steps", "1",
        "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu", "--trainer.callbacks", "[]",
        "--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(tmp_path / "run"),
    ])  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 1
    assert summary["arms"]["message"]["n"] == 2  # a tenth of the file, held out
    assert "JsonLines (own.jsonl)" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_my_pair_has_three_marked_lines_and_a_file_that_is_there() -> None:
    config = (CONFIGS / "my_pair.yaml").read_text()
    marked = [line for line in config.splitlines() if "# <- " in line]
    assert [line.split("# <- ")[1][0] for line in marked] == ["1", "2", "3"]
    file = marked[2].split()[1]
    examples = JsonLines(str(CONFIGS.parent / file)).examples("train", 0)
    assert len(examples) >= 16
    assert {example.needs_sharer for example in examples} == {True, False}
