"""Processes that a command has started end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcf_lightning.cli import main

ROOT = Path(__file__).parents[1]
WAITS = """
import ctypes, re, signal, subprocess, sys
from lcf_lightning.cli.faults import ended_by_signals
from lcf_lightning.cli.started import tell_of_signals

with ended_by_signals("evaluate"):
    other = subprocess.Popen(["sleep", "300"])
    tell_of_signals([other])
    print(other.pid, flush=True)
    libc, status = ctypes.CDLL(None), ctypes.c_int()
    signal.siginterrupt(signal.SIGTERM, False)  # as one that waits for another rank: no handler of Python's runs
    libc.waitpid(other.pid, ctypes.byref(status), 0)
"""


def test_who_waits_for_others_tells_them_that_it_is_ended() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        other = int(ours.stdout.readline())
        time.sleep(0.2)
        ours.terminate()
        try:
            _, said = ours.communicate(timeout=20)
        finally:
            ours.kill()
            if Path(f"/proc/{other}").exists():
                os.kill(other, signal.SIGKILL)
    assert "stopped: SIGTERM ended evaluate before its end" in said
    assert ours.returncode == 143


@pytest.mark.slow
def test_an_evaluation_that_is_ended_leaves_no_process_behind(tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.enable_progress_bar", "false",
              "--data.source.test_size", "400", "--data.eval_batch_size", "2",
              "--trainer.default_root_dir", str(tmp_path / "run")]  # fmt: skip
    main(["fit", *config, "--trainer.max_steps", "2", "--trainer.limit_test_batches", "1"])
    mark = str(tmp_path / "out")
    few = ["--arms", "own_context,message", "--trainer.devices", "2", "--output", mark]
    command = [sys.executable, "-m", "lcf_lightning", "evaluate", *config, *few]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log, stdout=log) as running,
    ):
        files = [tmp_path / "out" / name for name in ("predictions.jsonl", "predictions_1.jsonl")]
        deadline = time.monotonic() + 600
        try:
            while not all(file.exists() and file.stat().st_size for file in files):
                assert running.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert len(_named(mark)) == 2
            running.terminate()
            assert running.wait(60) == 143
            deadline = time.monotonic() + 20
            while _named(mark) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert _named(mark) == []
        finally:
            for process in map(int, _named(mark)):
                os.kill(process, signal.SIGKILL)
    assert "stopped: SIGTERM ended evaluate before its end; the same command goes on" in (tmp_path / "log").read_text()


def _named(mark: str) -> list[str]:
    """Processes that have this among their arguments."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [file.parent.name] if mark.encode() in file.read_bytes() else []
        except OSError:  # gone meanwhile
            continue
    return found
