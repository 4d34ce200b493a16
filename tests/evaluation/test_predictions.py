"""What is written down of an evaluation, and for which examples it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from lcf_lightning import LCFModule, ModelSpec, SharedContextDataModule
from lcf_lightning.cli.answers import _empty_unless_of
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Chat
from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.markdown import to_markdown
from lcf_lightning.evaluation.plots import arms_figure
from lcf_lightning.evaluation.prediction import Prediction, run_arms
from lcf_lightning.evaluation.predictions import by_example, keep, predict_all, read_predictions
from lcf_lightning.evaluation.ranks import dealt
from lcf_lightning.evaluation.report import build_report, summarise
from lcf_lightning.files import FolderLock
from tests.evaluation.answers import answer
from tests.pairs import small_module

Spec = Callable[[str], ModelSpec]


def test_an_answer_is_read_for_its_own_example_only(module: LCFModule, batch: Batch, tmp_path: Path) -> None:
    """Rows with equal ids, of another version of the data say, never answer for each other."""
    file = tmp_path / "predictions.jsonl"

    def answered(batch: Batch) -> list[Prediction]:
        return predict_all(module.link, module.writer, [batch], ["message"], 3, file)

    first = answered(batch)
    assert answered(batch) == first
    assert len(read_predictions(file)) == len(batch)
    changed = (replace(batch.examples[0], question="hides ada"), *batch.examples[1:])
    collator = module.writer.collator(batch.prompts)
    other = replace(collator.train(changed), partners=batch.partners)
    again = answered(other)
    assert again[0].id == first[0].id
    assert again[0].loss != first[0].loss
    assert again[1:] == first[1:]
    assert len(read_predictions(file)) == len(batch) + 1
    assert answered(batch) == first  # both stay


def test_what_is_no_file_holds_no_answers_and_is_named(tmp_path: Path) -> None:
    assert read_predictions(tmp_path / "none") == []
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, why in (("loop", "symbolic links"), ("pipe", "no regular file"), ("folder", "no regular file")):
        with pytest.raises(DataError, match=f"{name} cannot be read: .*{why}"):
            read_predictions(tmp_path / name)


def test_what_a_file_holds_is_not_written_again_and_the_last_answer_counts(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    one, two = answer("1", "message", 1.0, example="a"), answer("2", "message", 0.0, example="b")
    keep(file, [one])
    before = file.read_text()
    keep(file, [one, two])
    assert file.read_text().startswith(before)
    assert read_predictions(file) == [one, two]
    unlike = replace(one, prediction="other", loss=float("nan"))
    for _ in range(2):  # nan is not equal to itself
        keep(file, [one, unlike])
    assert len(read_predictions(file)) == 3
    assert by_example(read_predictions(file))["message", "a"].prediction == "other"


def test_each_process_reads_batches_of_its_own_as_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    loader: DataLoader[int] = DataLoader(range(11), batch_size=2, collate_fn=tuple)  # type: ignore[arg-type]
    whole = list(loader)
    assert dealt(loader) is loader
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(list(dealt(loader)))
    assert [len(share) for share in shares] == [2, 2, 1, 1]
    assert sorted(batch for share in shares for batch in share) == whole


def test_a_mismatched_answer_holds_for_its_partner_only(module: LCFModule, batch: Batch, tmp_path: Path) -> None:
    file, arms = tmp_path / "predictions.jsonl", ["message", "mismatched"]
    first = predict_all(module.link, module.writer, [batch], arms, 3, file)
    others = {row.id: row for row in (*batch.examples, *batch.partners)}.values()
    turned = replace(batch, partners=tuple(
        next(other for other in others if other.id not in (row.id, partner.id))
        for row, partner in zip(batch.examples, batch.partners, strict=True)
    ))  # fmt: skip
    again = predict_all(module.link, module.writer, [turned], arms, 3, file)
    assert again[: len(batch)] == first[: len(batch)]
    fresh = run_arms(ArmCaches(module.link, module.writer, turned), ["mismatched"], 3)
    assert [row.loss for row in again[len(batch) :]] == pytest.approx([row.loss for row in fresh], abs=1e-5)
    assert len(read_predictions(file)) == 3 * len(batch)


@pytest.fixture
def chats(spec: Spec, tmp_path: Path) -> Batch:
    rows = [
        {"instruction": f"Say {word}.", "response": f"{word}!\nAnd {word} again."} for word in ("tea", "a lamp", "ruby")
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Chat(str(tmp_path / "chats.jsonl"), str(tmp_path / "chats.jsonl"), validation_size=1)
    prompts = PromptSettings(chat=True, question="{question}", stop=None)
    data = SharedContextDataModule(source, spec("llama"), spec("qwen3"), prompts=prompts)
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_chats_have_a_loss_and_are_not_matched(spec: Spec, chats: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(spec("llama"), spec("qwen3"), pooler=None, unrotate_keys=False)
    module.configure_model()
    module.adapter.eval()
    monkeypatch.setattr("lcf_lightning.evaluation.prediction.generate", None)  # nothing is decoded for them
    rows = run_arms(ArmCaches(module.link, module.writer, chats), ["message", "mismatched", "own_context"], 16)
    assert {(row.exact_match, row.f1, row.prediction, row.partner_answers) for row in rows} == {(None, None, "", ())}
    summary, found = summarise(rows), build_report(rows, None, {})
    assert summary["arms"]["message"]["exact_match"] is None
    assert summary["arms"]["message"]["loss"] > 0
    assert (found["guesses"], found["audit"]["follow"]) == ({}, None)
    page = to_markdown(found)
    assert "| message | – | – | " in page
    assert "nats of loss; Wilcoxon p" in page
    assert arms_figure(found).axes[0].get_xlabel().startswith("loss in nats")


def test_a_line_that_was_cut_within_a_character_is_taken_out(tmp_path: Path) -> None:
    """At every byte, as a kill or a full disk cuts it; what is cut earlier is an error, as before."""
    file, rows = (
        tmp_path / "predictions.jsonl",
        [answer(id, "message", 1.0, prediction="Tee für 東京 🍵") for id in "ab"],
    )
    lines = [f"{json.dumps(asdict(row), ensure_ascii=False)}\n".encode() for row in rows]
    text = lines[1].index(b"Tee")
    for length in (0, *range(text, text + 30), len(lines[1]) - 1):
        file.write_bytes(lines[0] + lines[1][:length])
        assert read_predictions(file) == rows[:1]
        assert file.read_bytes() == lines[0]
    file.write_bytes(lines[0][:60] + b"\xe6\n" + lines[1])
    with pytest.raises(DataError, match="line 1 is not an answer of this version"):
        read_predictions(file)


@pytest.mark.parametrize("kind", ["utf-16", "carriage returns", "one array", "zeros", "too long"])
def test_a_file_that_is_no_evaluations_is_refused_and_left_as_it_was(tmp_path: Path, kind: str) -> None:
    file, line = tmp_path / "predictions.jsonl", json.dumps(asdict(answer("a", "message", 1.0)))
    content = {
        "utf-16": f"{line}\n{line}\n".encode("utf-16-le"), "carriage returns": f"{line}\r{line}\r".encode(),
        "one array": f"[{line}]".encode(), "zeros": bytes(1_000), "too long": b"{" + b" " * 2**25,
    }[kind]  # fmt: skip
    file.write_bytes(content)
    with pytest.raises(DataError, match="predictions.jsonl, line 1 is not an answer of this version"):
        read_predictions(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("torn", [b"", b'{"adapter": "ab', b'\xff\xfe{"adapter": 1}', b"[" * 100_000])
def test_torn_settings_are_moved_aside_with_the_answers_they_were_of(
    torn: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows of which adapter they are, and nothing is lost."""
    output = tmp_path / "out"
    with FolderLock(output, "output") as lock:
        _empty_unless_of({"adapter": "abc"}, lock)
        (output / "predictions.jsonl").write_text("answers")
        _empty_unless_of({"adapter": "abc"}, lock)
        assert (output / "predictions.jsonl").read_text() == "answers"
        (output / "settings.json").write_bytes(torn)
        _empty_unless_of({"adapter": "abc"}, lock)
    (aside,) = tmp_path.glob("out-*")
    assert (aside / "predictions.jsonl").read_text() == "answers"
    assert (aside / "settings.json").read_bytes() == torn
    assert json.loads((output / "settings.json").read_text()) == {"adapter": "abc"}
    assert f"of settings that cannot be read any more (settings.json is damaged); moved to {aside}" in (
        capsys.readouterr().err
    )
