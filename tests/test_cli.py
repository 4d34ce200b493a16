from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lcf_lightning import CacheAdapter
from lcf_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = [
    "--config", str(CONFIGS / "quickstart.yaml"), "--data.batch_size", "4", "--data.eval_batch_size", "6",
    "--data.source.validation_size", "12", "--data.source.test_size", "14", "--trainer.val_check_interval", "2",
    "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.callbacks+", "Speedup", "--trainer.callbacks.budgets", "[2]", "--trainer.callbacks.repeats", "1",
]  # fmt: skip


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stored:
        return list(csv.DictReader(stored))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def fit(folder: Path, *extra: str) -> None:
    main(["fit", *QUICK, "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "4", *extra])


def test_fit_leaves_a_whole_run_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(run_folder)
    summary = json.loads((run_folder / "summary.json").read_text())
    arms = {"own_context", "message", "mismatched", "full_context"}
    assert set(summary) == {"arms", "own_questions", "verdict", "speedup", "adapter", "train_seconds", "steps", "seed"}
    assert summary["speedup"]["speedup/ttft_vs_t2t_2"] > 0
    assert set(summary["arms"]) == set(summary["own_questions"]) == arms
    assert summary["arms"]["message"]["n"] + summary["own_questions"]["message"]["n"] == 14
    assert (summary["steps"], summary["seed"]) == (4, 42)
    adapter = CacheAdapter.from_pretrained(run_folder / "adapter")
    assert summary["adapter"]["parameters"] == adapter.parameter_counts()["total"]
    assert summary["adapter"]["bytes"] == (run_folder / "adapter" / "lcf_adapter.safetensors").stat().st_size
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["trainer"]["max_steps"] == 4
    assert [row["step"] for row in rows(run_folder / "metrics.csv") if row["train/loss"]] == ["0", "1", "2", "3"]
    assert len([row for row in rows(run_folder / "metrics.csv") if row["val/message/exact_match"]]) == 2
    assert list((run_folder / "tensorboard").glob("events*"))
    table = capsys.readouterr().out
    assert all(arm in table for arm in arms)


def test_the_resolved_config_runs_again(run_folder: Path, tmp_path: Path) -> None:
    """Also one that extended another file: what is saved stands alone."""
    blind = ["--config", str(CONFIGS / "quickstart_blind.yaml"), *QUICK[2:], "--model.adapter.pooler", "prefix"]
    main(["fit", *blind, "--trainer.default_root_dir", str(run_folder), "--trainer.max_steps", "2"])
    saved = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert saved["data"]["init_args"]["prompts"]["share_question"] is False
    assert saved["base"] is None
    again = tmp_path / "again"
    main(["fit", "--config", str(run_folder / "config.yaml"), "--trainer.default_root_dir", str(again)])
    first, second = (CacheAdapter.from_pretrained(folder / "adapter").state_dict() for folder in (run_folder, again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_an_earlier_run_is_moved_aside_and_a_resumed_one_continues(run_folder: Path) -> None:
    fit(run_folder)
    first = (run_folder / "summary.json").read_text()
    fit(run_folder, "--seed_everything", "7", "--trainer.max_steps", "5")
    (aside,) = [path for path in run_folder.parent.iterdir() if path.name.startswith("run-")]
    assert (aside / "summary.json").read_text() == first
    assert json.loads((run_folder / "summary.json").read_text())["seed"] == 7
    fit(run_folder, "--seed_everything", "7", "--trainer.max_steps", "7", "--ckpt_path", "last")
    saved = (run_folder / "config.yaml").read_text()
    assert "ckpt_path" not in yaml.safe_load(saved)  # to run it again is not to continue
    for refused in (["--model.adapter.d", "32"], ["--data.batch_size", "8"]):
        with pytest.raises(SystemExit):
            fit(run_folder, "--seed_everything", "7", "--trainer.max_steps", "9", "--ckpt_path", "last", *refused)
    assert (run_folder / "config.yaml").read_text() == saved
    assert len(list(run_folder.parent.iterdir())) == 2
    steps = [int(row["step"]) for row in rows(run_folder / "metrics.csv") if row["train/loss"]]
    assert steps == list(range(7))  # five is between two intervals: the last checkpoint is the run's very end
    assert json.loads((run_folder / "summary.json").read_text())["steps"] == 7


def test_what_will_not_train_moves_nothing(run_folder: Path) -> None:
    fit(run_folder)
    with pytest.raises(SystemExit):
        fit(run_folder, "--model.sharer.path", "/no/such/model")
    fit(run_folder, "--trainer.fast_dev_run", "true")
    assert [path.name for path in run_folder.parent.iterdir()] == ["run"]
    assert (run_folder / "summary.json").is_file()


def test_a_run_killed_before_its_summary_is_finished_by_resuming(run_folder: Path) -> None:
    fit(run_folder)
    whole = json.loads((run_folder / "summary.json").read_text())
    shutil.rmtree(run_folder / "adapter")
    (run_folder / "summary.json").unlink()
    fit(run_folder, "--ckpt_path", "last")
    again = json.loads((run_folder / "summary.json").read_text())
    assert again["arms"] == whole["arms"]
    assert CacheAdapter.from_pretrained(run_folder / "adapter").config.metadata["steps"] == 4


def test_last_on_a_first_start_begins_afresh(run_folder: Path) -> None:
    fit(run_folder, "--ckpt_path", "last")
    assert json.loads((run_folder / "summary.json").read_text())["steps"] == 4
    assert (run_folder / "checkpoints" / "last.ckpt").is_file()


def test_validate_test_and_predict_use_the_trained_adapter(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(run_folder, "--trainer.max_steps", "5")
    fitted = json.loads((run_folder / "summary.json").read_text())["arms"]["message"]
    kept = {name: (run_folder / name).read_bytes() for name in ("config.yaml", "metrics.csv", "summary.json")}
    capsys.readouterr()
    for command in ("validate", "test", "predict"):
        main([command, *QUICK, "--trainer.default_root_dir", str(run_folder)])
    tables = capsys.readouterr().out
    assert "validation split" in tables
    assert "test split" in tables
    (tested,) = rows(run_folder / "test" / "metrics.csv")
    assert float(tested["test/message/loss"]) == pytest.approx(fitted["loss"], abs=1e-5)
    predictions = [json.loads(line) for line in (run_folder / "predictions.jsonl").read_text().splitlines()]
    needing = [row for row in predictions if row["needs_sharer"]]
    assert len(predictions) == 14
    assert sum(row["loss"] for row in needing) / fitted["n"] == pytest.approx(fitted["loss"], abs=1e-5)
    assert {name: (run_folder / name).read_bytes() for name in kept} == kept


def test_print_config_shows_defaults_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *QUICK, "--model.adapter.d", "32", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert stopped.value.code == 0
    assert printed["model"]["adapter"]["d"] == 32
    assert printed["model"]["adapter"]["layer_map"] == "last_aligned"
    assert printed["data"]["init_args"]["source"]["init_args"]["sharer_facts"] == 4


@pytest.mark.parametrize(
    ("config", "total", "megabytes"),
    [
        ("qwen_openhermes_lcf128", 19_393_528, 38.8),
        ("qwen_openhermes_lcf256", 53_409_272, 106.8),
        ("qwen_openhermes_c2c", 477_848_056, 955.7),
        ("qwen3_hotpotqa_lcfx", 25_873_400, 51.7),
    ],
)
def test_params_of_the_papers_configs(
    config: str, total: int, megabytes: float, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["params", "--config", str(CONFIGS / f"{config}.yaml"), "--json"])
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["total"] == total
    assert sizes["megabytes_bf16"] == pytest.approx(megabytes, abs=0.05)
    assert sizes["per_layer"] * sizes["layers"] + sizes["pool"] == total


def test_the_sizes_that_the_paper_compares(capsys: pytest.CaptureFixture[str]) -> None:
    def total(config: str, *extra: str) -> int:
        main(["params", "--config", str(CONFIGS / f"{config}.yaml"), "--json", *extra])
        return int(json.loads(capsys.readouterr().out)["total"])

    nine = total("qwen_openhermes_lcf128", "--model.adapter.layers", "[6,8,9,10,15,16,17,19,21]")
    c2c = total("qwen_openhermes_c2c")
    assert round(c2c / total("qwen_openhermes_lcf128"), 1) == 24.6
    assert round(c2c / nine, 1) == 76.7


def test_params_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    layers = ["--model.adapter.layers", "[6,8,9,10,15,16,17,19,21]"]
    main(["params", "--config", str(CONFIGS / "qwen_openhermes_lcf128.yaml"), *layers])
    text = capsys.readouterr().out
    assert "6,233,634" in text
    assert "692,626 × 9" in text
    assert "12.5 MB" in text


BAD_INPUT = [
    (["--model.sharer.path", "/no/such/model"], "path='/no/such/model' is no model folder; give a hub id"),
    (["--model.adapter.d", "7"], "d=7 must be even and between 2 and 65536"),
    (["--model.adapter.fuser", "mlp"], "fuser='mlp' must be c2c, lcf, or the class path"),
    (["--model.adapter.layers", "[9]"], "layers=[9] must be ascending, distinct and between 0 and 3"),
    (["--model.sharer.dtype", "int8"], "dtype='int8' of model 'tiny-sharer' must be one of float32"),
    (["--data.prompts.spans", "word"], "spans='word' must be paragraph, sentence or window:N"),
    (["--data.batch_size", "0"], "batch_size=0 must be at least 1"),
    (["--data.source.test_size", "0"], "test_size=0 must be at least 1"),
    (["--data.source.own_questions", "2"], "own_questions=2"),
    (
        ["--data.source", "Wikipedia"],
        "data.source='Wikipedia' must be one of BAbI, BothWays, Chat, Continuation",
    ),
    (["--data.source", "HotpotQA", "--data.source.train", "no.jsonl"], "train='no.jsonl' is not a file"),
    (["--config", "no.yaml"], "no.yaml' is not a file."),
    (["--model.adaptr.d", "3"], "model.adaptr.d is no setting; did you mean model.adapter.d?"),
    (["--model.adapter.d", "x"], "model.adapter.d=x must be a whole number."),
    (["--trainer.max_steps", "two"], "error: trainer.max_steps=two must be a whole number."),
    (["--data.source.test_size", "x"], "error: data.source.test_size=x must be a whole number."),
    (["--data.prompts.max_sharer_tokens", "x"], "error: data.prompts.max_sharer_tokens=x is of a kind that is not"),
    (["--trainer.accelerator", "tpu"], "trainer.accelerator='tpu' is not on this machine; take auto or "),
    (["--data.prompts.spns", "3"], "error: data.prompts.spns is no setting; did you mean data.prompts.spans?"),
    (["--data.source", "HotpotQA", "--data.source.trian", "x"], "data.source.trian is no setting; did you mean data."),
    (["--data", "ContextMismatch"], "data='ContextMismatch' must be one of ContextMismatchDataModule, "),
    (["--model.optimizer", "AdmW"], "or the import path of a torch optimizer; did you mean AdamW?"),
    (["--trainer.logger", "WandbLoger"], "or the import path of a Logger; did you mean WandbLogger?"),
    (["--trainer.callbacks", "EarlyStopping"], "error: trainer.callbacks needs monitor."),
    (["--trainer.strategy", "dddp"], "error: trainer: You selected an invalid strategy name: `strategy='dddp'`."),
    (["--model.lr_scheduler", "CosineAnealingLR"], "of a learning rate scheduler; did you mean CosineAnnealingLR?"),
    (["--trainer.callbacks+", "Speedupp"], "or the import path of a Callback; did you mean Speedup?"),
    (
        ["--model.optimizer", "torch.optim.AdmW"],
        "error: model.optimizer names a class that cannot be imported: module 'torch.optim'",
    ),
    (["--data.source", "nowhere.Mine"], "data.source names a class that cannot be imported: No module named 'nowh"),
    (["--trainer.precision", "half"], "trainer.precision='half' must be one of transformer-engine"),
    (["--trainer.max_step", "5"], "trainer.max_step is no setting; did you mean trainer.max_steps?"),
    (["--modules", "nowhere_at_all"], "modules='nowhere_at_all' cannot be imported: No module named"),
    (["--modules", "[nowhere_at_all]"], "modules='nowhere_at_all' cannot be imported: No module named"),
    (["--ckpt_path", "no.ckpt"], "ckpt_path='no.ckpt' must be an existing checkpoint, or last"),
    (["--trainer.precision", "bf16-true"], "precision='bf16-true' must be one of 32-true, bf16-mixed: the adapter is"),
    (["--model.adapter.pooler", "null"], "pooler=null must name a pooler"),
    (["--data", "SharedContextDataModule", "--data.source", "Knowledge"], "pooler='span' must be null where both"),
    (["--data.prompts.alignment", "last"], "alignment='last' must be one of first, longest"),
    (["--trainer.logger", "CometLogger"], "is not installed: pip install 'comet-ml>="),
    (["--data.prompts.chat", "true"], "chat=true needs a tokenizer with a chat template"),
    (["--trainer.callbacks+", "CommunicationAccuracy", "--trainer.callbacks.arms", "[x]"], "arms=['x'] must be one"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input_ends_with_code_2_and_a_sentence(
    arguments: list[str], message: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(run_folder, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (run_folder / "adapter").exists()


def test_an_untrained_adapter_is_not_scored(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["test", *QUICK, "--trainer.default_root_dir", str(run_folder)])
    assert stopped.value.code == 2
    assert "ckpt_path=null needs a trained adapter in" in capsys.readouterr().err


def run_as(devices: int, command: str, folder: Path, *extra: str) -> None:
    arguments = [
        sys.executable, "-m", "lcf_lightning", command, *QUICK, "--data.source.validation_size", "7",
        "--data.source.test_size", "7", "--data.eval_batch_size", "2", "--trainer.default_root_dir", str(folder),
        "--model.adapter.gate_noise", "none",  # which every process draws for itself
        "--trainer.devices", str(devices), "--trainer.strategy", "ddp" if devices > 1 else "auto", *extra,
    ]  # fmt: skip
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=folder.parent)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path: Path) -> None:
    """The same global batch gives the same adapter, and seven examples on two ranks count as seven."""
    figures = []
    for devices, batch in ((1, "4"), (2, "2")):
        folder = tmp_path / str(devices)
        run_as(devices, "fit", folder, "--trainer.max_steps", "3", "--data.batch_size", batch)
        figures.append(json.loads((folder / "summary.json").read_text()))
    assert [summary["arms"]["message"]["n"] + summary["own_questions"]["message"]["n"] for summary in figures] == [7, 7]
    for arm, one in figures[0]["arms"].items():
        assert figures[1]["arms"][arm] == pytest.approx(one, abs=1e-4)
    logged = []
    for devices in (1, 2):  # the same adapter, validated by one process and by two
        folder = tmp_path / f"validated_{devices}"
        checkpoint = str(tmp_path / "1" / "checkpoints" / "last.ckpt")
        run_as(devices, "validate", folder, "--ckpt_path", checkpoint)
        (row,) = rows(folder / "validate" / "metrics.csv")
        logged.append({name: float(value) for name, value in row.items() if name.startswith("val/")})
    assert logged[1] == pytest.approx(logged[0], abs=1e-5)
    assert {"val/loss", "val/message/exact_match", "val/mismatched/f1"} <= logged[0].keys()
    one, two = (CacheAdapter.from_pretrained(tmp_path / n / "adapter").state_dict() for n in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
