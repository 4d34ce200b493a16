"""What a command says, and with which code it ends, where a signal or a full disk ends it."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest

from lcf_lightning.cli import main
from lcf_lightning.cli.faults import ended_by_signals, explain, goes_on
from lcf_lightning.cli.run import _from_checkpoint
from tests.test_cli import QUICK

FEW = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]


class SignalInTest(pl.Callback):
    """Sends this process a signal in the evaluation after a fit, or in ``test``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_test_batch_start(self, *_: object) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_in_an_evaluation_ends_it_with_its_own_code(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A scheduler that saw 0 would take the missing result for there."""
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    extra = ["--trainer.callbacks+", f"{__name__}.SignalInTest", "--trainer.callbacks.number", str(int(number))]
    run = [*QUICK, *FEW, *extra, "--trainer.default_root_dir", str(tmp_path)]
    endings = {
        "fit": f"the same command with --ckpt_path last continues from {tmp_path / 'checkpoints' / 'last.ckpt'}.",
        "test": "the same command begins anew.",
    }
    for command, then in endings.items():
        with pytest.raises(SystemExit) as stopped:
            main([command, *run])
        assert stopped.value.code == 128 + number
        assert f"stopped: {number.name} ended {command} before its end; {then}\n" in capfd.readouterr().err
        assert not (tmp_path / "summary.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_ctrl_c_during_the_imports_leaves_one_line(tmp_path: Path) -> None:
    """In the middle of torch's, which take seconds."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    run = (
        "import runpy, sys; "
        f"sys.path.insert(0, {str(tmp_path)!r}); "
        "runpy.run_module('lcf_lightning', run_name='__main__', alter_sys=True)"
    )
    ended = subprocess.run([sys.executable, "-c", run, "fit"], capture_output=True, text=True, timeout=60)
    assert ended.stderr == "stopped: SIGINT came before anything had begun.\n"
    assert ended.returncode == 130


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As of a job that runs behind its shell."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_signals("fit"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_no_checkpoint_is_promised_that_is_not_there(tmp_path: Path) -> None:
    full, file = OSError(errno.ENOSPC, "No space left on device", "metrics.csv"), tmp_path / "last.ckpt"
    token = goes_on.set(lambda: _from_checkpoint(file))
    try:
        for error in (full, MemoryError()):
            explained = explain(error, goes_on.get()())
            assert explained is not None
            assert explained[0].endswith("no checkpoint has been written yet: the same command begins anew.")
        file.touch()
        assert explain(full, goes_on.get()()) == (
            "error: [Errno 28] No space left on device: 'metrics.csv'; nothing written before is lost, and the same "
            f"command with --ckpt_path last continues from {file}.",
            1,
        )
    finally:
        goes_on.reset(token)
