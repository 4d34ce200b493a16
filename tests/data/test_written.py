"""Tokens that are written once: by one rank, for all ranks and later starts; and only of what is taken."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lcf_lightning import ModelSpec, SharedContextDataModule
from lcf_lightning.data import written as module
from lcf_lightning.data.batch import Batch, Collator
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Chat, Mixture
from lcf_lightning.errors import DataError
from tests.data.conftest import epoch_of, on_rank
from tests.data.sources.rows import write

Start = Callable[..., SharedContextDataModule]
PROMPTS = {"question": "{question}", "max_receiver_tokens": 200}


def chat_row(number: int, words: int | None = None) -> dict[str, Any]:
    said = " ".join(f"{number}" for _ in range(words or 1 + number % 7))
    return {"id": f"c{number}", "instruction": said, "output": f"{number}."}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "lcf_lightning"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all examples that are written for training from now on."""
    seen: list[str] = []
    write_for_training = Collator.write_for_training

    def counted(collator: Collator, example: Any) -> Any:
        seen.append(example.id)
        return write_for_training(collator, example)

    monkeypatch.setattr(Collator, "write_for_training", counted)
    return seen


@pytest.fixture
def start(spec: Callable[[str], ModelSpec], tmp_path: Path, cache: Path) -> Start:
    """A fit begins: a data module of its own, set up as one of 40 chats."""
    file = write(tmp_path / "chats.jsonl", [chat_row(number) for number in range(40)])

    def begun(file: str = file, prompts: dict[str, Any] = PROMPTS, **settings: Any) -> SharedContextDataModule:
        given = {"source": Chat(file, validation_size=4), "batch_size": 4, "eval_batch_size": 3, **settings}
        data = SharedContextDataModule(
            sharer=spec("gemma3"), receiver=spec("qwen3"), prompts=PromptSettings(**prompts), **given
        )
        data.setup("fit")
        return on_rank(data, 0, 1)  # type: ignore[arg-type, return-value]

    return begun


def tokens_of(data: SharedContextDataModule) -> list[Batch]:
    return list(epoch_of(data.train_dataloader(), 0))


def test_a_second_start_reads_what_the_first_has_written(start: Start, calls: list[str]) -> None:
    first = tokens_of(start())
    assert len(calls) == len(set(calls)) == 40
    second = tokens_of(start())
    assert len(calls) == 40
    for one, other in zip(first, second, strict=True):
        assert one.examples == other.examples
        for name in ("index", "last", "answers", "answer_mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        for side in ("sharer", "receiver", "question"):
            tokens, others = getattr(one, side), getattr(other, side)
            assert torch.equal(tokens.ids, others.ids)
            assert torch.equal(tokens.spans, others.spans)


def test_what_is_read_is_what_would_be_written(start: Start) -> None:
    data = start()
    assert data._collator is not None
    for batch in tokens_of(data):
        anew = data._collator.train(batch.examples)
        assert torch.equal(batch.index, anew.index)
        assert torch.equal(batch.sharer.ids, anew.sharer.ids)
        assert torch.equal(batch.receiver.ids, anew.receiver.ids)
        assert torch.equal(batch.receiver.spans, anew.receiver.spans)
        assert torch.equal(batch.answers, anew.answers)
        assert batch.dropped_spans == anew.dropped_spans == 0


def test_a_damaged_file_is_made_again(start: Start, cache: Path, calls: list[str]) -> None:
    first = tokens_of(start())
    damaged = max(cache.glob("*.arrow"), key=lambda file: file.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-4_000])
    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged .*; made anew"):
        second = tokens_of(start())
    assert len(calls) == 40 + 36
    assert [batch.ids for batch in first] == [batch.ids for batch in second]


@pytest.mark.slow
def test_several_processes_write_the_same(start: Start, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tokens_of(start())
    shutil.rmtree(cache)
    monkeypatch.setattr("lcf_lightning.data.made_once._BATCH", 4)
    data = start(num_workers=2)
    assert len([file for file in cache.glob("*.arrow") if "_of_00002" in file.name]) == 2
    for batch, other in zip(one, tokens_of(data), strict=True):
        assert batch.ids == other.ids
        assert torch.equal(batch.receiver.ids, other.receiver.ids)


def test_a_start_that_is_killed_loses_a_chunk_at_most(
    start: Start, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    counted = Collator.write_for_training

    def killed(collator: Collator, example: Any) -> Any:
        if len(calls) == 20:
            raise KeyboardInterrupt
        return counted(collator, example)

    monkeypatch.setattr(Collator, "write_for_training", killed)
    with pytest.raises(KeyboardInterrupt):
        start()
    monkeypatch.setattr(Collator, "write_for_training", counted)
    start()
    assert len(calls) == 20 + 40 - 16  # two chunks of eight were kept


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": {**PROMPTS, "question": "Say: {question}"}},
        {"prompts": {**PROMPTS, "max_receiver_tokens": 199}},
        {"seed": 43},
        {"receiver": "llama"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_prompt_limit_seed_or_tokenizer_makes_them_anew(
    start: Start, calls: list[str], changed: dict[str, Any], spec: Callable[[str], ModelSpec]
) -> None:
    start()
    if "receiver" in changed:
        data = SharedContextDataModule(
            start().source, spec("gemma3"), spec("llama"), prompts=PromptSettings(**PROMPTS), batch_size=4
        )
        data.setup("fit")
    else:
        start(**changed)
    assert len(calls) == 80


def test_other_rows_and_other_code_make_them_anew(
    start: Start, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    start(write(tmp_path / "others.jsonl", [chat_row(number, 2) for number in range(40)]))
    assert len(calls) == 80
    monkeypatch.setattr("lcf_lightning.data.sources.source.code_digest", lambda kind: "of a file that was edited")
    start()
    assert len(calls) == 120


def test_tokens_of_another_text_are_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that a source calls may change what it reads, and no digest knows of it."""
    start()
    to_example = Chat.to_example

    def changed(source: Chat, row: dict[str, Any], seed: int) -> Any:
        return to_example(source, row | {"instruction": "Something else."}, seed)

    monkeypatch.setattr(Chat, "to_example", changed)
    with pytest.raises(
        DataError, match=r"tokens that are kept of 'c\d+' are of another text: .* delete '.*lcf_lightning'"
    ):
        tokens_of(start())


def test_only_what_a_fit_takes_is_written(
    start: Start, calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an order that a longer fit goes on with."""
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr("lcf_lightning.data.loader.POOL", 2)
    orders = []
    for enough in (16, None):
        monkeypatch.setattr("lcf_lightning.data.datamodule.examples_taken", lambda *_, enough=enough: enough)
        data = start(group_by_length=True)
        orders.append([batch.ids for batch in tokens_of(data)])
    assert len(calls) == 20 + 4 + 16  # two chunks, the validation, the rest
    assert [len(order) for order in orders] == [4, 9]
    assert orders[1][:4] == orders[0]


def test_a_row_that_cannot_be_understood_is_left_out_and_named(
    start: Start, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    rows = [chat_row(number) for number in range(40)]
    for number in (3, 8, 21, 30):
        rows[number]["output"] = None
    data = start(write(tmp_path / "bad.jsonl", rows))
    seen = {id for batch in tokens_of(data) for id in batch.ids} | {row.id for row in data._examples["validation"]}
    assert seen == {f"c{number}" for number in range(40)} - {"c3", "c8", "c21", "c30"}
    (said,) = [str(warning.message) for warning in recwarn if "cannot be understood" in str(warning.message)]
    assert "bad.jsonl': 4 of 40 rows cannot be understood and are left out, counted from 0: row 3: KeyError" in said
    assert said.count("row ") == 3
    assert said.endswith("; …")


def test_a_row_that_cannot_be_written_is_left_out_and_named(
    start: Start, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """As one of which a chat template makes another text."""
    counted, refused_ids = Collator.write_for_training, {f"c{number}" for number in range(10, 20)}

    def refused(collator: Collator, example: Any) -> Any:
        if example.id in refused_ids:
            raise DataError("the template changes it")
        return counted(collator, example)

    monkeypatch.setattr(Collator, "write_for_training", refused)
    data = start()
    assert not refused_ids & {row.id for split in ("train", "validation") for row in data._examples[split]}  # type: ignore[index]
    (said,) = [text for text in (str(warning.message) for warning in recwarn) if "train split: " in text]
    assert re.search(r"\d+ of 36 examples cannot be written, left out: 'c\d+': the template changes it; ", said)
    assert said.count("the template") == 3
    refused_ids |= {f"c{number}" for number in range(40)}
    with pytest.raises(
        DataError, match=r"train split: 36 of 36 examples cannot be written; 'c.*': the template changes it\.$"
    ):
        start(seed=7)


def test_a_file_is_read_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load_dataset = datasets.load_dataset

    def load(*args: Any, **options: Any) -> Any:
        loaded.append(args[0])
        return load_dataset(*args, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    start().setup("test")
    assert loaded == ["json"]


def test_sources_that_keep_nothing_are_written_in_memory(start: Start, cache: Path, tmp_path: Path) -> None:
    source = Mixture([Chat(write(tmp_path / "more.jsonl", [chat_row(n) for n in range(12)]), validation_size=2)])
    data = start(source=source)
    assert len(tokens_of(data)) == 2
    assert not list(cache.glob("*.arrow"))


def test_a_rank_waits_for_the_one_that_writes(start: Start, calls: list[str], cache: Path, tmp_path: Path) -> None:
    """Another process, which the kernel makes wait."""
    start()
    from lcf_lightning.files import turn

    lock = tmp_path / "one.lock"
    read, write_end = os.pipe()
    with turn(lock):
        child = os.fork()
        if child == 0:
            with turn(lock):
                os.write(write_end, b"second")
            os._exit(0)
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 6)
    os.waitpid(child, 0)
    assert os.read(read, 6) == b"second"
