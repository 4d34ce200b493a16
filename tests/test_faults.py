"""What goes wrong on a cluster, and what a user sees and keeps (docs/reliability.md)."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from lcf_lightning.cli import main
from lcf_lightning.cli.config import require_accelerator
from lcf_lightning.cli.faults import explain
from lcf_lightning.errors import Stopped, shown
from tests.survival import ARGUMENTS, outcome
from tests.test_cli import QUICK, rows


def command(folder: Path, *extra: str) -> list[str]:
    return [
        sys.executable, "-m", "lcf_lightning", "fit", *ARGUMENTS, "--trainer.default_root_dir", str(folder), *extra
    ]  # fmt: skip


def run(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *extra), capture_output=True, text=True, timeout=300)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes, or, where none can be mounted, a skip."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_fit_with_a_sentence_and_room_lets_it_go_on(tmp_path: Path, disk: Path) -> None:
    undisturbed = run(tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    failed = run(disk / "run")
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    checkpoint = disk / "run" / "checkpoints" / "last.ckpt"
    then = f"continues from {checkpoint}." if checkpoint.is_file() else "the same command begins anew."
    assert failed.stderr.splitlines()[-1].endswith(then)
    subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
    finished = run(disk / "run")
    assert finished.returncode == 0, finished.stderr
    assert outcome(disk / "run") == outcome(tmp_path / "undisturbed")


def test_a_read_only_run_folder_is_refused_at_once(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *QUICK, "--trainer.default_root_dir", str(disk / "a" / "run")])
    assert stopped.value.code == 2
    assert "must be a folder that can be written" in capsys.readouterr().err


def test_a_run_folder_that_is_a_file_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *QUICK, "--trainer.default_root_dir", str(tmp_path / "file" / "run")])
    assert stopped.value.code == 2
    assert f"default_root_dir='{tmp_path / 'file' / 'run'}' must be a folder" in capsys.readouterr().err


def test_an_unreadable_data_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"id": "1"}\n' * 500)[:-20])
    arguments = ["--data.source", "HotpotQA", "--data.source.train", str(file), "--data.source.test", str(file)]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", QUICK[1], "--trainer.default_root_dir", str(tmp_path / "run"), *arguments])
    assert stopped.value.code == 2
    assert str(file) in capsys.readouterr().err.splitlines()[-1]


class PoisonRank(pl.Callback):
    """NaN in the adapter of one rank, at one step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_nan_on_one_rank_ends_all_within_a_minute(tmp_path: Path, rank: int) -> None:
    poison = ("--trainer.callbacks+", "tests.test_faults.PoisonRank", "--trainer.callbacks.rank", str(rank),
              "--trainer.callbacks.step", "5")  # fmt: skip
    started = time.monotonic()
    ended = run(tmp_path / "run", *DDP, *poison)
    assert time.monotonic() - started < 60 + 60  # it has to start first
    assert ended.returncode != 0
    assert "error: loss=nan at step 5, on the batch of ids" in ended.stderr
    assert f"rank {1 - rank} has lost another rank" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_within_a_minute_and_nothing_is_lost(tmp_path: Path) -> None:
    whole = run(tmp_path / "undisturbed", *DDP)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder, *DDP), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    (child,) = (int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGKILL)
    died = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - died < 60
    assert process.returncode != 0
    assert "rank 0 has lost another rank" in errors
    again = run(folder, *DDP)
    assert again.returncode == 0, again.stderr
    assert outcome(folder) == outcome(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_at_the_same_step(tmp_path: Path) -> None:
    """Also to the one that did not start the others."""
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder, *DDP), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.csv").is_file() or len(rows(folder / "metrics.csv")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    (child,) = (int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stops = {line for line in errors.splitlines() if line.startswith("stopped: SIGTERM ended the fit; step ")}
    assert len(stops) == 1  # both ranks name the same step
    finished = run(folder, *DDP)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((folder / "summary.json").read_text())["steps"] == 40


class Hungry(pl.Callback):
    """Asks for more memory than any machine has."""

    def on_train_batch_start(self, *_: object) -> None:
        torch.empty(2**60)


def test_out_of_memory_names_the_settings_to_lower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *QUICK, "--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks+", f"{__name__}.Hungry"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1
    assert error.startswith("error: out of memory (")
    assert all(setting in error for setting in ("data.batch_size", "accumulate_grad_batches", "max_sharer_tokens"))


def test_a_sentence_does_not_change_the_terminal() -> None:
    assert shown("checkpoint='\x1b[31m' is damaged: \0é\n") == "checkpoint='\\x1b[31m' is damaged: \\x00é\n"


def test_other_errors_keep_their_traceback_and_a_stopped_fit_its_code() -> None:
    assert explain(KeyError("a bug"), "") is None
    assert explain(RuntimeError("shape mismatch"), "") is None
    assert explain(FileNotFoundError(2, "No such file"), "") is None
    assert explain(PermissionError(13, "Permission denied", "rows.jsonl"), "") == (
        "error: [Errno 13] Permission denied: 'rows.jsonl'",
        2,
    )
    lacking = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "it goes on")
    assert lacking is not None
    assert lacking[0].endswith("Then it goes on.")
    assert explain(Stopped("s", signal.SIGTERM, requeued=False), "") == ("stopped: s", 143)
    assert explain(Stopped("s", signal.SIGUSR1, requeued=True), "") == ("stopped: s", 0)


@pytest.mark.parametrize("name", ["fit", "cache"])
def test_a_gpu_that_is_not_there_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that loads a model, with Lightning's Trainer or without."""
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    folders = ["--trainer.default_root_dir", str(tmp_path), "--model.prefills.folder", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([name, *QUICK, *folders, "--trainer.accelerator", "gpu"])
    assert stopped.value.code == 2
    assert "error: trainer.accelerator='gpu' is not on this machine; take auto or " in capsys.readouterr().err
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    require_accelerator("gpu")
