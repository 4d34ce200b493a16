from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lcf_lightning.callbacks import GateMonitor, LastCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from lcf_lightning import LCFModule, ModelSpec, slurm
from lcf_lightning.checkpoints import AtomicCheckpointIO, last_checkpoint, newest_checkpoint, read_checkpoint
from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.errors import AdapterFileError, SettingError, Stopped
from lcf_lightning.loggers import ContinuedCSVLogger
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
STEPS = 11


class PowerCut(pl.Callback):
    """Ends a run at once, at a step, in a hook."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._cut)

    def _cut(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise RuntimeError("power cut")


def run(
    spec: Spec, folder: Path, *callbacks: pl.Callback, every: int = 1, minutes: float = 10, **settings: Any
) -> LCFModule:
    """A run of `STEPS` steps over epochs of eight batches, continued where there is a checkpoint."""
    module, data = small_module(spec("llama"), spec("qwen3")), small_data(spec("llama"), spec("qwen3"), batch_size=8)
    trainer = small_trainer(
        folder, *callbacks, GateMonitor(), LastCheckpoint(every, minutes), max_steps=STEPS,
        logger=ContinuedCSVLogger(folder.parent, folder.name, version=""), log_every_n_steps=2,
        **{"plugins": [AtomicCheckpointIO()], **settings},
    )  # fmt: skip
    found = newest_checkpoint(folder)
    trainer.fit(module, datamodule=data, ckpt_path=found and str(found[0]), weights_only=True)
    return module


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stored:
        return list(csv.DictReader(stored))


def same(one: LCFModule, other: LCFModule) -> bool:
    states = one.adapter.state_dict(), other.adapter.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


SETTINGS: dict[str, dict[str, Any]] = {
    "validated by steps": {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1},
    "validated by epochs": {"limit_val_batches": 1, "max_epochs": 9},
    "accumulated": {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1,
                    "accumulate_grad_batches": 2},
    "validated between accumulated batches": {
        "val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1, "accumulate_grad_batches": 2,
    },
    "not validated": {"limit_val_batches": 0},
}  # fmt: skip


HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_validation_batch_end")
USUAL = [("validated by steps", "on_train_batch_end"), ("accumulated", "on_train_batch_start")]
OTHERS = [(name, hook) for name in SETTINGS for hook in HOOKS if (name, hook) not in USUAL]


@pytest.mark.parametrize(
    ("name", "hook"), [*USUAL, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_a_run_cut_anywhere_ends_as_if_undisturbed(spec: Spec, tmp_path: Path, name: str, hook: str) -> None:
    """Same adapter to the bit, same rows of metrics.csv: none lost, none twice. An epoch has eight batches."""
    undisturbed, cuts = run(spec, tmp_path / "whole", **SETTINGS[name]), 0
    for step in (3, 8) if (name, hook) in USUAL else (2, 3, 7, 8, 9):
        folder = tmp_path / str(step)
        try:
            run(spec, folder, PowerCut(hook, step), **SETTINGS[name])
        except RuntimeError:
            cuts += 1
            resumed = run(spec, folder, **SETTINGS[name])
            assert same(resumed, undisturbed), step
            assert logged(folder) == logged(tmp_path / "whole"), step
            assert resumed.trainer.global_step == STEPS
    assert cuts or (name, hook) == ("not validated", "on_validation_batch_end")


class Send(pl.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self.number, self.step = number, step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_fit_after_the_step_and_keeps_it(spec: Spec, tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    undisturbed = run(spec, tmp_path / "whole", every=100, **SETTINGS["validated by steps"])
    for step in (3, 5):  # after which no validation is due, and one
        unfinished = last_checkpoint(tmp_path / str(step)).with_name(".last-0.ckpt")
        unfinished.parent.mkdir(parents=True)
        unfinished.touch()
        with pytest.raises(
            Stopped, match=rf"{number.name} ended the fit; step {step + 1} is saved in .*last.ckpt, and"
        ):
            run(spec, tmp_path / str(step), Send(number, step), every=100, **SETTINGS["validated by steps"])
        assert signal.getsignal(number) == handler
        resumed = run(spec, tmp_path / str(step), every=100, **SETTINGS["validated by steps"])
        assert not unfinished.exists()
        assert same(resumed, undisturbed)
        assert logged(tmp_path / str(step)) == logged(tmp_path / "whole")


class SendAtTheEnd(pl.Callback):
    """A signal when the last step has been looked at."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == STEPS:
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_after_the_last_step_is_not_lost(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=f"SIGTERM ended the fit; step {STEPS} is saved"):
        run(spec, tmp_path / "run", SendAtTheEnd(), limit_val_batches=0)
    assert read_checkpoint(last_checkpoint(tmp_path / "run"))["global_step"] == STEPS


def test_a_validation_by_the_clock_is_refused(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="val_check_interval must count batches, not time"):
        run(spec, tmp_path / "run", val_check_interval="00:00:10:00", check_val_every_n_epoch=None)
    assert not last_checkpoint(tmp_path / "run").exists()


def test_slurm_is_asked_to_queue_the_job_again(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the programs that answer for it; tests/slurm/run asks a real one."""
    scontrol, plugins = tmp_path / "scontrol", [AtomicCheckpointIO(), LightningEnvironment()]
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("PATH", str(tmp_path))
    answers = (
        (signal.SIGUSR1, f"/bin/echo $@ >> {tmp_path}/asked", True, "the job is queued again"),
        (signal.SIGTERM, "exit 3", False, "the same command with --ckpt_path last continues"),
        (signal.SIGUSR1, "echo no >&2; exit 1", False, r"could not be queued again \(no\); the same command"),
        (signal.SIGUSR1, None, False, r"could not be queued again \(.*No such file.*\); the same command"),
    )
    for turn, (number, script, requeued, message) in enumerate(answers):
        scontrol.unlink(missing_ok=True)
        if script is not None:
            scontrol.write_text(f"#!/bin/sh\n{script}\n")
            scontrol.chmod(0o755)
        with pytest.raises(Stopped, match=message) as stopped:
            run(spec, tmp_path / str(turn), Send(number, 2), plugins=plugins)
        assert stopped.value.requeued == requeued
        assert last_checkpoint(tmp_path / str(turn)).is_file()
    assert (tmp_path / "asked").read_text() == "requeue 71\n"


def test_between_steps_the_job_is_queued_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(slurm.SIGNAL)
    slurm.requeue_between_steps()
    assert signal.getsignal(slurm.SIGNAL) == handler  # no cluster, no handler
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    asked: list[str | None] = []
    monkeypatch.setattr(slurm, "requeue", lambda: asked.append(slurm.job()) or "")
    slurm.requeue_between_steps()
    try:
        monkeypatch.setenv("SLURM_PROCID", "1")
        signal.raise_signal(slurm.SIGNAL)  # rank 0 asks, and its end is the others'
        monkeypatch.setenv("SLURM_PROCID", "0")
        with pytest.raises(Stopped, match="SIGUSR1 came, and job 71 is queued again") as stopped:
            signal.raise_signal(slurm.SIGNAL)
        assert stopped.value.requeued
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
        assert slurm.job() == "70_2"  # 71 may be the number of the whole array
    finally:
        signal.signal(slurm.SIGNAL, handler)
    assert asked == ["71"]  # by one rank


def test_checkpoints_are_due_by_steps_and_by_minutes(spec: Spec, tmp_path: Path) -> None:
    saved: dict[str, list[int]] = {}

    class Watch(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
            saved.setdefault(Path(path).parts[-3], []).append(checkpoint["global_step"])
            super().save_checkpoint(checkpoint, path)

    run(spec, tmp_path / "steps", every=4, limit_val_batches=0, plugins=[Watch()])
    run(spec, tmp_path / "minutes", every=100, minutes=1e-6, limit_val_batches=0, plugins=[Watch()])
    assert saved == {"steps": [1, 4, 8], "minutes": list(range(1, STEPS + 1))}
    assert [path.name for path in (tmp_path / "steps" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_ranks_that_would_continue_from_different_steps_are_refused(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on nodes that do not share the run folder."""
    steps = iter([0, 4])  # the least and the greatest of all ranks
    monkeypatch.setattr("lcf_lightning.callbacks.checkpoint._greatest", lambda *_: next(steps))
    with pytest.raises(SettingError, match="ckpt_path is of step 0 on one rank and of step 4 on another; all nodes"):
        run(spec, tmp_path / "run")
    assert not last_checkpoint(tmp_path / "run").exists()


def test_the_newest_checkpoint_is_that_with_most_steps(spec: Spec, tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "run") is None
    run(spec, tmp_path / "run", every=4, limit_val_batches=0)
    last = last_checkpoint(tmp_path / "run")
    content = read_checkpoint(last)
    for steps, newest in ((8, last), (9, tmp_path / "run" / "hpc_ckpt_1.ckpt")):
        AtomicCheckpointIO().save_checkpoint({**content, "global_step": steps}, tmp_path / "run" / "hpc_ckpt_1.ckpt")
        assert newest_checkpoint(tmp_path / "run") == (newest, max(steps, content["global_step"]))
    last.write_bytes(last.read_bytes()[:2_000])
    with pytest.raises(AdapterFileError, match=r"checkpoint='.*last.ckpt' is damaged or not one of this package"):
        newest_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(("settings", "message"), [((0,), "every_n_steps=0"), ((1, 0.0), "every_n_minutes=0.0")])
def test_bad_settings_are_named(settings: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message} must be"):
        LastCheckpoint(*settings)
    assert LastCheckpoint().every_n_steps == 100


def test_a_checkpoint_is_read_once_before_a_fit_goes_on(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To know which is the newest, and its steps."""
    run(spec, tmp_path / "run", every=4, limit_val_batches=0)
    last, other = last_checkpoint(tmp_path / "run"), tmp_path / "run" / "hpc_ckpt_1.ckpt"
    AtomicCheckpointIO().save_checkpoint(read_checkpoint(last), other)
    reads: list[Path] = []

    def counted(file: Path) -> dict[str, Any]:
        reads.append(file)
        return read_checkpoint(file)

    monkeypatch.setattr("lcf_lightning.checkpoints.read_checkpoint", counted)
    command = SimpleNamespace(config={"fit": {"ckpt_path": "last"}}, subcommand="fit", run_folder=tmp_path / "run")
    LCFCLI._check_checkpoint(command)  # type: ignore[arg-type]
    assert sorted(reads) == [last, other]
    assert (command.config["fit"]["ckpt_path"], command._steps_before) == (str(last), 8)
