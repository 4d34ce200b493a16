from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.sources import BAbI, HotpotQA, RowSource, SQuAD, World
from lcf_lightning.data.sources.squad import split_sentences
from lcf_lightning.data.sources.world import NAMES, RELATIONS, VALUES
from lcf_lightning.errors import DataError, SettingError

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the files of shared/data are not on this machine")
Rows = list[dict[str, Any]]
CONTEXT = "Ada likes tea. Ben sat down.  He met 3 cats! Was it J. Smith? Yes."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the user's cache of data sets, and none asks the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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


# The world


def test_the_world_uses_a_name_once() -> None:
    for example in World(train_size=200).examples("train", 1):
        facts = [passage[0].split() for passage in example.sharer + example.receiver]
        assert len({name for _, name, _, _ in facts}) == len(facts) == 7
        assert all(r in RELATIONS and n in NAMES and v in VALUES and dot == "." for r, n, v, dot in facts)


def test_the_right_side_answers_the_world_question() -> None:
    sides = Counter()
    for example in World(train_size=200).examples("train", 1):
        fact = f"{example.question} {example.answers[0]} ."
        sides[example.needs_sharer] += 1
        assert ((fact,) in example.sharer) == example.needs_sharer
        assert ((fact,) in example.receiver) != example.needs_sharer
    assert min(sides.values()) > 20


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.6, 1.0])
def test_the_fraction_of_own_questions_is_kept(fraction: float) -> None:
    examples = list(World(own_questions=fraction, train_size=2000).examples("train", 7))
    share = sum(not example.needs_sharer for example in examples) / 2000
    assert abs(share - fraction) < 0.04
    assert (share in (0, 1)) == (fraction in (0, 1))


def test_world_sizes_and_facts_follow_the_settings() -> None:
    world = World(sharer_facts=2, receiver_facts=0, own_questions=0, train_size=5, validation_size=3, test_size=4)
    assert [len(world.examples(split, 0)) for split in ("train", "validation", "test")] == [5, 3, 4]
    assert len(list(world.examples("test", 0))) == 4
    assert {(len(e.sharer), len(e.receiver)) for e in world.examples("train", 0)} == {(2, 0)}
    with pytest.raises(IndexError):
        world.examples("test", 0)[4]


def test_world_splits_are_disjoint() -> None:
    world = World(train_size=500, validation_size=500, test_size=500)
    splits = [list(world.examples(split, 3)) for split in ("train", "validation", "test")]
    everything = [example for split in splits for example in split]
    assert len({example.id for example in everything}) == 1500
    assert len({(example.sharer, example.receiver) for example in everything}) == 1500


def test_the_world_is_a_function_of_its_seed() -> None:
    assert list(World().examples("test", 5)) == list(World().examples("test", 5))
    assert World().examples("test", 5)[9].sharer != World().examples("test", 6)[9].sharer
    assert World(test_size=9999).examples("test", 5)[9] == World().examples("test", 5)[9]


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"sharer_facts": 0}, "sharer_facts=0 and receiver_facts=3 must be at least 1 and 0"),
        ({"receiver_facts": -1}, "receiver_facts=-1 must be at least 1 and 0"),
        ({"sharer_facts": 1000}, f"at most {len(NAMES)} together"),
        ({"own_questions": 1.5}, r"own_questions=1.5 must be a fraction in \[0, 1\]"),
        ({"own_questions": -0.1}, "own_questions=-0.1 must be a fraction"),
        ({"receiver_facts": 0}, "own_questions=0.25 must be a fraction .* and 0 where receiver_facts is 0"),
        ({"train_size": -1}, "train_size=-1"),
        ({"validation_size": -1}, "validation_size=-1"),
        ({"test_size": -1}, "test_size=-1"),
    ],
)
def test_world_settings_out_of_range_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        World(**setting)


# HotpotQA


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
    ours = HotpotQA(local, local).examples("test", 2)
    assert ours == HotpotQA(hub, hub).examples("test", 2)
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
    drawn = {seed: source.examples("test", seed) for seed in range(12)}
    assert drawn[3] == source.examples("test", 3)
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
        ({"validation_size": 0}, "validation_size=0 must be at least 1"),
    ],
)
def test_hotpotqa_settings_out_of_range_are_refused(setting: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        HotpotQA(**setting)


# Splits of row sources


def test_validation_rows_are_held_out_of_training(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [hotpot_row(index) for index in range(20)])
    test = write(tmp_path / "test.jsonl", [hotpot_row(index) for index in range(50, 53)])
    source = HotpotQA(train, test, validation_size=6)
    ids = {split: [e.id for e in source.examples(split, 1)] for split in ("train", "validation", "test")}
    assert (len(ids["train"]), len(ids["validation"])) == (14, 6)
    assert {*ids["train"], *ids["validation"]} == {f"h{index}" for index in range(20)}
    assert ids["test"] == ["h50", "h51", "h52"]
    assert set(ids["validation"]) != {e.id for e in source.examples("validation", 2)}
    assert source.examples("train", 1) == source.examples("train", 1)


def test_limits_take_fewer_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(12)])
    free, limited = HotpotQA(file, file, validation_size=4), HotpotQA(file, file, None, "bridge", 4, 3, 2)
    assert limited.examples("train", 0) == free.examples("train", 0)[:3]
    assert limited.examples("test", 0) == free.examples("test", 0)[:2]
    assert limited.examples("validation", 0) == free.examples("validation", 0)
    assert (len(free.examples("train", 0)), len(free.examples("test", 0))) == (8, 12)


def test_a_limit_counts_rows_of_the_chosen_type(tmp_path: Path) -> None:
    rows = [hotpot_row(index, "comparison" if index < 5 else "bridge") for index in range(10)]
    file = write(tmp_path / "rows.jsonl", rows)
    source = HotpotQA(file, file, validation_size=1, test_limit=2)
    assert [example.id for example in source.examples("test", 0)] == ["h5", "h6"]
    assert len(source.examples("train", 0)) == 4


# SQuAD


@pytest.mark.parametrize("answer", ["Ada", "Ben", "cats", "Smith", "Yes"])
def test_squad_gives_the_answers_sentence_to_the_sharer(tmp_path: Path, answer: str) -> None:
    file = write(tmp_path / "rows.jsonl", [squad_row(0, answer)])
    for seed in range(8):
        (example,) = SQuAD(file, file).examples("test", seed)
        assert answer in text_of(example.sharer)
        assert answer not in text_of(example.receiver)
        assert example.answers == (answer,)
        assert 0 <= len(example.sharer) - len(example.receiver) <= 1


def test_squad_follows_the_offset_not_the_word(tmp_path: Path) -> None:
    """The answer's word may stand in several sentences."""
    row = squad_row(0) | {"context": "Ben ran. Ben sat. Ben ate. Ben left.", "answers": ["Ben"], "answer_start": [18]}
    file = write(tmp_path / "rows.jsonl", [row])
    sharers = [SQuAD(file, file).examples("test", seed)[0].sharer for seed in range(12)]
    assert all((" Ben ate.",) in sharer for sharer in sharers)
    assert len(set(sharers)) > 1


def test_squad_reads_the_same_from_either_shape(tmp_path: Path) -> None:
    local = [squad_row(index) for index in range(3)]
    hub = [row | {"answers": {"text": row["answers"], "answer_start": row["answer_start"]}} for row in local]
    for row in hub:
        del row["answer_start"]
    first, second = write(tmp_path / "local.jsonl", local), write(tmp_path / "hub.parquet", hub)
    assert SQuAD(first, first).examples("test", 0) == SQuAD(second, second).examples("test", 0)
    assert len(SQuAD(second, second).examples("test", 0)) == 3


def test_squad_keeps_the_whole_paragraph(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [squad_row(0)])
    (whole,) = SQuAD(file, file, partition="sharer").examples("test", 0)
    (split,) = SQuAD(file, file, partition="split").examples("test", 0)
    assert text_of(whole.sharer) == CONTEXT
    assert whole.receiver == ()
    assert sorted(split.sharer + split.receiver) == sorted(whole.sharer)
    assert (whole.partition["mode"], split.partition["mode"]) == ("sharer", "split")


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert split_sentences(CONTEXT) == [
        "Ada likes tea.", " Ben sat down.", "  He met 3 cats!", " Was it J.", " Smith?", " Yes."
    ]  # fmt: skip
    assert split_sentences('It cost 3.5 dollars e.g. here. "So?" he said.') == [
        "It cost 3.5 dollars e.g. here.", ' "So?" he said.'
    ]  # fmt: skip
    assert split_sentences("") == []


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet='aB1.!? \n"(', max_size=40))
def test_sentences_join_to_their_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentences)


# bAbI


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


# What cannot be found, read or understood


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


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.parquet"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    file = Path(write(tmp_path / name, [hub_row(index) for index in range(50)]))
    assert len(HotpotQA(str(file), str(file)).examples("test", 0)) == 50
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"^test='.*{name}' cannot be read: "):
        HotpotQA(str(file), str(file)).examples("test", 0)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "nothing.jsonl", [])
    with pytest.raises(DataError, match="^test"):
        HotpotQA(file, file).examples("test", 0)
    with pytest.raises(DataError, match="^train"):
        HotpotQA(file, file).examples("train", 0)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [hotpot_row(index) for index in range(4)])
    with pytest.raises(DataError, match="test split of HotpotQA is empty; give more rows"):
        HotpotQA(file, file, question_type="comparison").examples("test", 0)
    with pytest.raises(DataError, match="train split of HotpotQA is empty"):
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


# The files in shared/data


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


@needs_real_data
def test_real_squad_answers_are_with_the_sharer() -> None:
    """Also where the answer runs on after what looks like a sentence's end."""
    file = str(REAL / "squad_v1_subset.jsonl.gz")
    examples = SQuAD(file, file).examples("test", 42)
    lost = [example.id for example in examples if example.answers[0] not in text_of(example.sharer)]
    assert len(examples) == 4709
    assert lost == []


@needs_real_data
def test_real_babi_loads() -> None:
    source = BAbI(str(REAL / "babi_train.jsonl.gz"), str(REAL / "babi_test.jsonl.gz"), partition="split")
    tests, train = source.examples("test", 0), source.examples("train", 0)
    assert len(tests) == 1000
    assert len(train) == 2000 - 128
    assert all(example.answers[0] in text_of(example.sharer) for example in (*tests, *train))
