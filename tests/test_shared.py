"""Shared context from the command line to Python: fit, evaluate, compare, prune, export, Channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lcf_lightning import CacheAdapter, Channel
from lcf_lightning.adapter.card import CARD_FILE
from lcf_lightning.cli import main
from lcf_lightning.data.sources import Knowledge
from lcf_lightning.errors import MessageError
from tests.pairs import SHARED_ARMS

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED = [
    "--config", str(CONFIGS / "quickstart_shared.yaml"), "--data.source.validation_size", "12",
    "--data.source.test_size", "14", "--data.source.choices", "0", "--data.batch_size", "4",
    "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter of a few steps, and its evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(["fit", *SHARED, "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "3"])
    evaluate(folder, folder / "evaluation")
    return folder


def evaluate(run: Path, output: Path, *extra: str) -> None:
    main(["evaluate", *SHARED, "--trainer.default_root_dir", str(run), "--output", str(output), "--repeats", "1",
          *extra])  # fmt: skip


def prune(run: Path, *extra: str) -> None:
    main(["prune", *SHARED, "--trainer.default_root_dir", str(run), *extra])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_fit_and_evaluate_run_the_arms_of_a_shared_text(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["arms"]) == {"own_context", "message", "mismatched", "sharer_alone"}
    assert summary["speedup"] == {}  # no sharer writes a text here: the receiver has read it all
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert tuple(report["arms"]) == SHARED_ARMS
    assert report["arms"]["message"]["n"] == 14
    assert report["arms"]["sharer_alone"]["exact_match"]["value"] == 1.0
    assert set(report["optimal_routing"]) == {"all"}
    for arm, figures in summary["arms"].items():
        assert report["arms"][arm]["exact_match"]["value"] == pytest.approx(figures["exact_match"])


def test_the_exported_checkpoint_answers_as_the_run_did(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "adapter")])
    exported, own = (CacheAdapter.from_pretrained(folder) for folder in (tmp_path / "adapter", run / "adapter"))
    for name, tensor in own.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor)
    channel = Channel.from_pretrained(tmp_path / "adapter")
    main(["predict", *SHARED, "--trainer.default_root_dir", str(run)])
    said = {row["id"]: row for row in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}
    examples = Knowledge(choices=0, validation_size=12, test_size=14).examples("test", 42)
    assert {example.id for example in examples} == set(said)
    for example in examples:
        message = channel.send([], example.question)
        assert channel.receive(message, example.question, max_new_tokens=16).text == said[example.id]["prediction"]
    card = (tmp_path / "adapter" / CARD_FILE).read_text()
    scores = json.loads((run / "summary.json").read_text())["arms"]["message"]
    for part in ("tiny-expert", "tiny-receiver", "| Steps | 3 |", "| Seed | 42 |", "Knowledge",
                 f"| message | {scores['exact_match']:.3f} | "):  # fmt: skip
        assert part in card


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_export_in_fewer_bits(run: Path, tmp_path: Path, dtype: str, size: int) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "a"), "--dtype", dtype])
    adapter = CacheAdapter.from_pretrained(tmp_path / "a")
    assert adapter.gates.logits.element_size() == size
    bytes_ = (tmp_path / "a" / "lcf_adapter.safetensors").stat().st_size
    assert bytes_ == pytest.approx(size * adapter.parameter_counts()["total"], rel=0.02)


def test_a_checkpoint_from_before_a_setting_can_be_continued(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["adapter_config"]["settings"]["zero_init"], content["seal"]  # which came later
    torch.save(content, tmp_path / "old.ckpt")
    before = (run / "summary.json").read_text()
    main(["validate", *SHARED, "--trainer.default_root_dir", str(run), "--ckpt_path", str(tmp_path / "old.ckpt")])
    assert (run / "summary.json").read_text() == before
    assert (run / "validate" / "metrics.csv").is_file()


def test_an_adapter_of_the_hub_is_evaluated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lcf_lightning.adapter.hub.snapshot_download", lambda *_, **__: str(run / "adapter"))
    evaluate(run, tmp_path / "e", "--adapter", "ada/adapter", "--arms", "[message]")
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    own = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["arms"]["message"] == own["arms"]["message"]
    assert report["facts"]["adapter_bytes"] == own["facts"]["adapter_bytes"]


def test_export_refuses_what_is_no_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def export(file: Path, *extra: str) -> str:
        return refused(capsys, "export", "--checkpoint", str(file), "--output", str(tmp_path / "o"), *extra)

    good = run / "checkpoints" / "last.ckpt"
    assert "is not a file; fit writes checkpoints/last.ckpt" in export(tmp_path / "none.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(good.read_bytes()[:1000])
    assert "is damaged or not one of this package" in export(tmp_path / "cut.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "is damaged or not one of this package" in export(tmp_path / "foreign.ckpt")
    content = torch.load(good, weights_only=True)
    content["state_dict"].popitem()
    del content["seal"]
    torch.save(content, tmp_path / "less.ckpt")
    assert "does not hold exactly the adapter's tensors" in export(tmp_path / "less.ckpt")
    assert "dtype='int8' must be one of fp32, bf16, fp16" in export(good, "--dtype", "int8")
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    assert "exists; name a folder that does not" in export(good)


def test_a_message_of_another_text_is_refused(run: Path) -> None:
    channel = Channel.from_pretrained(run / "adapter")
    message = channel.send([], "seeks wren")
    assert channel.receive(message, "seeks wren")
    for other in (("seeks wren", ["owns bob lamp ."]), ("seeks opal", [])):  # of another length, and of the same
        with pytest.raises(MessageError, match="message of another text: where both models read the same, send and"):
            channel.receive(message, *other)


def test_another_adapters_evaluation_has_a_folder_of_its_own(run: Path) -> None:
    before = (run / "evaluation" / "report.json").read_bytes()
    main(["evaluate", *SHARED, "--trainer.default_root_dir", str(run), "--repeats", "0", "--arms", "[message]",
          "--adapter", str(run / "adapter_best")])  # fmt: skip
    assert (run / "evaluation" / "report.json").read_bytes() == before
    page = (run / "evaluation_adapter_best" / "report.md").read_text()
    assert "T2T" not in page
    assert "optimal routing" not in page


def test_a_pruned_adapter_is_evaluated_like_any_other(run: Path, tmp_path: Path) -> None:
    prune(run, "--keep", "2", "--output", str(tmp_path / "pruned"))
    found = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    adapter = CacheAdapter.from_pretrained(tmp_path / "pruned")
    assert list(adapter.config.receiver_layers) == found["kept"]
    assert 1 <= len(found["kept"]) <= 2
    assert [len(point["layers"]) for point in found["curve"]] == [0, 1, 2, 3, 4]
    assert all(point["n"] == 12 for point in found["curve"])
    assert (tmp_path / "pruned" / "pruning.png").read_bytes().startswith(b"\x89PNG")
    assert "| layers | MB |" in (tmp_path / "pruned" / "pruning.md").read_text()
    assert adapter.config.metadata["pruned"]["from"] == str(run / "adapter")
    evaluate(run, tmp_path / "e", "--adapter", str(tmp_path / "pruned"), "--arms", "[message,own_context]")
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    full = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["facts"]["adapter_bytes"] < full["facts"]["adapter_bytes"]
    assert report["arms"]["own_context"] == full["arms"]["own_context"]


def test_prune_refuses_what_it_cannot_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", *SHARED, "--trainer.default_root_dir", str(run), "--output", str(tmp_path / "o")]
    assert "keep=None must be a number of layers of at least 1" in refused(capsys, *command)
    assert "keep=0 must be a number of layers of at least 1" in refused(capsys, *command, "--keep", "0")
    assert "keep=5 must be at most 4" in refused(capsys, *command, "--keep", "5")
    assert "limit=0 must be at least 1" in refused(capsys, *command, "--keep", "1", "--limit", "0")
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    assert "exists; name a folder that does not" in refused(capsys, *command, "--keep", "1")


def test_compare_pairs_two_evaluations(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = str(run / "evaluation"), str(tmp_path / "two")
    evaluate(run, Path(two), "--arms", "[message]")
    capsys.readouterr()
    main(["compare", one, two, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["all"]["n"], found["all"]["gain"]["value"], found["all"]["mcnemar_p"]) == (14, 0.0, 1.0)
    main(["compare", one, two])
    assert "only first" in capsys.readouterr().out
    other = tmp_path / "other_seed"
    other.mkdir()
    rows = [json.loads(line) for line in (Path(two) / "predictions.jsonl").read_text().splitlines()]
    (other / "predictions.jsonl").write_text(
        "".join(json.dumps(row | {"loss": row["loss"] + 1}) + "\n" for row in rows)
    )
    main(["compare", "--seeds", one, str(other), "--json"])
    seeds = json.loads(capsys.readouterr().out)
    assert list(seeds["arms"]) == ["message"]
    assert seeds["arms"]["message"]["each"][0] == seeds["arms"]["message"]["mean"]["value"]
    main(["compare", one, str(other), "--seeds"])
    assert "2 seeds" in capsys.readouterr().out
    assert "hold the same answers" in refused(capsys, "compare", one, two, "--seeds")
    assert "must be two evaluations, or with --seeds two or more" in refused(capsys, "compare", one, two, one)
    assert "arm='zero' must be one that both evaluations have: message" in refused(
        capsys, "compare", one, two, "--arm", "zero"
    )
    assert "must be a folder of an evaluation; it has no predictions.jsonl." in refused(capsys, "compare", one, "/none")
    assert f"; did you mean {other} or {two}?" in refused(capsys, "compare", str(tmp_path), one)
    evaluate(run, tmp_path / "few", "--arms", "[message]", "--limit", "5")
    assert "did not answer the same questions: 9 only in the first, 0 only in" in refused(
        capsys, "compare", one, str(tmp_path / "few")
    )


def test_an_adapter_needs_its_kind_of_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--config", str(CONFIGS / "quickstart.yaml"), "--trainer.default_root_dir", str(run)]
    assert "has no pooler and needs a SharedContextDataModule, not a ContextMismatchDataModule" in refused(
        capsys, "evaluate", *quick
    )
    assert "has no pooler and needs a SharedContextDataModule" in refused(capsys, "prune", *quick, "--keep", "1")
