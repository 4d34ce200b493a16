"""What a fit reads before its first step, leaves alone where it has none, and says and logs; of whatever logger."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcf_lightning import LCFModule
from lcf_lightning.cli import main
from lcf_lightning.cli.said import quiet
from lcf_lightning.errors import SettingError
from tests.pairs import parse_only
from tests.test_cli import CONFIGS, QUICK, fit, rows

SHARED = ["--config", str(CONFIGS / "quickstart_shared.yaml"), "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize("data", ["benchmark", "source"])
def test_what_is_tested_on_is_read_before_a_weight(
    data: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test file that is not there; a benchmark whose messages are all the same, so that none is a wrong one."""
    monkeypatch.setattr("lcf_lightning.module.load_pair", lambda *_: pytest.fail("weights are loaded"))
    benchmark = run_folder.parent / "one.jsonl"
    ask = {"question": "two?", "choices": ["one", "two"], "answer": 1}
    benchmark.write_text("".join(f"{json.dumps({**ask, 'id': n})}\n" for n in range(1 if data == "benchmark" else 4)))
    given = {"class_path": "MultipleChoice", "init_args": {"test": str(benchmark)}}
    more = ["--data.benchmarks", json.dumps({"mine": given})]
    if data == "source":
        more = ["--data.source", "MultipleChoice", "--data.source.train", str(benchmark)]
        more += ["--data.source.validation_size", "1", "--data.source.test", "no.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *SHARED, "--trainer.default_root_dir", str(run_folder), *more])
    assert ended.value.code == 2
    assert ("no.jsonl" if data == "source" else "mine") in capsys.readouterr().err
    assert not (run_folder / "config.yaml").exists()


def fails(*_: object) -> Any:
    raise SettingError("batch=0 is what this step dislikes.")


def test_a_start_that_trains_nothing_leaves_the_earlier_run_where_it_was(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(run_folder)
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(LCFModule, "training_step", fails)
        with pytest.raises(SystemExit):
            fit(run_folder, "--model.adapter.d", "32")
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    assert list(run_folder.parent.iterdir()) == [run_folder]

    step = LCFModule.training_step
    monkeypatch.setattr(
        LCFModule, "training_step", lambda self, *given: fails() if self.global_step else step(self, *given)
    )
    with pytest.raises(SystemExit):
        fit(run_folder, "--model.adapter.d", "32")
    assert len(list(run_folder.parent.iterdir())) == 2  # this one has trained
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["model"]["adapter"]["d"] == 32


def test_csv_stays_whatever_logger_is_added_and_all_know_the_settings(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = run_folder.parent / "board"
    one = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(board)]  # no list
    fit(run_folder, *one, "--trainer.logger.name", "", "--trainer.logger.version", "")
    assert rows(run_folder / "metrics.csv")
    for folder in (run_folder, board):
        settings = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert (settings["adapter/d"], settings["optimizer/name"], settings["optimizer/lr"]) == (64, "AdamW", 3e-3)
        assert (settings["sharer/path"], settings["trainer/max_steps"]) == ("tiny-sharer", 4)
        assert settings["data/init_args/batch_size"] == 4
        assert settings["data/init_args/source/class_path"].endswith("World")
    events = EventAccumulator(str(board))
    events.Reload()
    assert {"_hparams_/session_start_info", "_hparams_/experiment"} <= set(events.summary_metadata)
    assert "test/message/exact_match" in events.Tags()["scalars"]

    said = capsys.readouterr().out  # the whole of it: the models, the table, the verdict, the next commands
    assert [line.split()[0] for line in said.splitlines()[:3]] == ["sharer", "receiver", "adapter"]
    assert said.count(", frozen\n") == 2
    assert said.count(", trained\n") == 1
    summary = json.loads((run_folder / "summary.json").read_text())
    assert f"Verdict: {summary['verdict']['verdict']}: " in said
    assert f"evaluate --config {run_folder / 'config.yaml'}" in said.splitlines()[-2]

    assert parse_only(["evaluate", "--config", str(run_folder / "config.yaml")])["model"]["adapter"]["d"] == 64

    checkpoint = str(run_folder / "checkpoints" / "last.ckpt")  # whose hyperparameters change no setting
    main(["validate", *QUICK, "--trainer.default_root_dir", str(run_folder), "--ckpt_path", checkpoint])


def test_what_libraries_say_of_themselves_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    quiet()
    talk = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, talk.name):
        for line in ("GPU available: False, used: False", "💡 Tip: install litlogger", "runs/a held an earlier run"):
            talk.info(line)
    assert caplog.messages == ["runs/a held an earlier run"]


@pytest.mark.parametrize("monitor", ["val/los", "nothing"])
def test_a_wrong_monitor_of_a_single_callback_is_named(
    monitor: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", monitor]  # no list
    with pytest.raises(SystemExit) as ended:
        main(["fit", *QUICK[:-6], *stopping, "--trainer.default_root_dir", str(run_folder), "--trainer.max_steps", "2"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"error: monitor={monitor!r} must be one of " in said
    assert said.endswith("; did you mean val/loss?\n" if monitor == "val/los" else ".\n")
