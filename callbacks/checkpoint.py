"""`LastCheckpoint`: a run that is killed, pre-empted or stopped loses nothing."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lcf_lightning import slurm
from lcf_lightning.checkpoints import last_checkpoint
from lcf_lightning.errors import SettingError, Stopped
from lcf_lightning.loggers import ContinuedCSVLogger

SIGNALS = (signal.SIGINT, signal.SIGTERM, slurm.SIGNAL)  # a later one is kept where several come


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint, ``checkpoints/last.ckpt`` in the run folder, from which a fit ends as if never stopped.

    It is written after the first optimizer step, which shows that it can be, then every ``every_n_steps`` steps and
    every ``every_n_minutes``, whichever comes first, when a step is wholly done: never between accumulated batches, and
    after the validation that is due.

    SIGINT (Ctrl-C, once), SIGTERM and SIGUSR1 end a fit after the step in progress, with a checkpoint. On a SLURM
    cluster SIGUSR1, which ``sbatch --signal=USR1@300`` sends five minutes before the time limit, also puts the job
    back in the queue. All ranks stop at the same step, whichever of them got the signal.

    Args:
        every_n_steps: Optimizer steps from one checkpoint to the next.
        every_n_minutes: Minutes from one checkpoint to the next, at most, and the rest of a step.

    Raises:
        SettingError: If a number is out of range, or ranks would continue from different steps.
        Stopped: In a fit that a signal has ended.
    """

    def __init__(self, every_n_steps: int = 100, every_n_minutes: float = 10.0) -> None:
        if every_n_steps < 1:
            raise SettingError(f"every_n_steps={every_n_steps} must be at least 1.")
        if every_n_minutes <= 0:
            raise SettingError(f"every_n_minutes={every_n_minutes} must be above 0.")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._received = 0  # 1 + place in SIGNALS
        self._handlers: dict[signal.Signals, Any] = {}
        self._saved_step, self._saved_at = 0, 0.0
        self._logged: dict[str, Any] = {}  # rows that metrics.csv has, and what is still to go there

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._logged:  # a checkpoint is continued, if only to the evaluation after the last step
            self._continue_logs(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        first, last = -_greatest(trainer, -trainer.global_step), _greatest(trainer, trainer.global_step)
        if first != last:
            raise SettingError(
                f"ckpt_path is of step {first} on one rank and of step {last} on another; all nodes need the same "
                "default_root_dir, on a file system that they share."
            )
        if vars(trainer)["_val_check_time_interval"] is not None:
            raise SettingError("val_check_interval must count batches, not time, for ranks and resumed runs to agree.")
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            for unfinished in last_checkpoint(Path(trainer.default_root_dir)).parent.glob(".last-*.ckpt"):
                unfinished.unlink()  # of a run that was killed while it wrote
        self._received = 0
        # Lightning registers its own before this; its requeue handler saves in the middle of a step.
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:  # asked twice
            before = self._handlers[signal.SIGINT]
            (before if callable(before) else signal.default_int_handler)(number, frame)
        self._received = max(self._received, 1 + SIGNALS.index(signal.Signals(number)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A resumed run would take a validation that is due for one that was made, so that comes first.
        if not trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._save_if_due(trainer, unlogged=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: pl.Trainer, unlogged: bool = False) -> None:
        if trainer.global_step == self._saved_step or trainer.fit_loop.epoch_loop._should_accumulate():
            return  # in the middle of a step the gradients so far would be lost
        late = int(time.monotonic() - self._saved_at > 60 * self.every_n_minutes)
        received, late = divmod(_greatest(trainer, 2 * self._received + late), 2)  # of all ranks
        periods = (step // self.every_n_steps for step in (self._saved_step, trainer.global_step))
        first = not self._logged and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if received or late or first or len(set(periods)) > 1:
            self.save(trainer, unlogged)
        if received:
            self._end(trainer, SIGNALS[received - 1])

    def save(self, trainer: pl.Trainer, unlogged: bool = False) -> None:
        """Write the checkpoint of this step; every rank must call this.

        Args:
            trainer: Whose state to save.
            unlogged: Whether this step is still to be logged.
        """
        rows = [logger.rows() for logger in trainer.loggers if isinstance(logger, ContinuedCSVLogger)]
        self._logged = {"rows": max(rows, default=0), "step": trainer.global_step - 1}
        self._logged["metrics"] = _to_be_logged(trainer) if unlogged else {}
        trainer.save_checkpoint(last_checkpoint(Path(trainer.default_root_dir)), weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _end(self, trainer: pl.Trainer, number: signal.Signals) -> None:
        asked = number == slurm.SIGNAL and slurm.job() is not None
        refused = slurm.requeue() if asked and trainer.is_global_zero else ""
        # A broadcast: no rank ends, and has the others killed, before the job is in the queue.
        refused = trainer.strategy.broadcast(refused)
        then = "the same command with --ckpt_path last continues"
        if asked:
            then = f"the job could not be queued again ({refused}); {then}" if refused else "the job is queued again"
        file = last_checkpoint(Path(trainer.default_root_dir))
        message = f"{number.name} ended the fit; step {trainer.global_step} is saved in {file}, and {then}."
        raise Stopped(message, number, requeued=asked and not refused)

    def _continue_logs(self, trainer: pl.Trainer) -> None:
        """What was logged after the checkpoint will be logged again; what should have been logged with it is now."""
        for logger in trainer.loggers:
            if isinstance(logger, ContinuedCSVLogger):
                logger.forget_after(self._logged["rows"])
            if self._logged["metrics"]:
                logger.log_metrics(self._logged["metrics"], self._logged["step"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()
        received = _greatest(trainer, self._received)  # since the last step was looked at
        if received:
            self.save(trainer)
            self._end(trainer, SIGNALS[received - 1])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # none: it was not Python's
        self._handlers = {}

    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged = state_dict["logged"]


def _to_be_logged(trainer: pl.Trainer) -> dict[str, float]:
    """Lightning logs a step after the hooks that can save it, so a checkpoint takes that step's metrics along."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    return metrics | {"epoch": trainer.current_epoch}


def _greatest(trainer: pl.Trainer, number: int) -> int:
    """The greatest ``number`` of all ranks; of a single one, without asking its device."""
    if trainer.world_size == 1:
        return number
    strategy = trainer.strategy
    return int(strategy.reduce(torch.tensor(number, device=strategy.root_device), reduce_op="max"))
