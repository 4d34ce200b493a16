"""`AdapterExport`: the adapter folders that a run leaves behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lcf_lightning.callbacks.accuracy import required_module
from lightning.pytorch.trainer.states import TrainerFn

from lcf_lightning.adapter.card import LICENSE
from lcf_lightning.adapter.folder import record_scores
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.digests import tensors_digest
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.report import Summary
from lcf_lightning.module import LCFModule


class AdapterExport(pl.Callback):
    """Writes the adapter's folder at the end of a fit, and beside it that of the best validation.

    Both hold what their user must know: steps, seed, and how prompts were written.

    Args:
        folder: Where to write the last adapter; by default ``adapter`` under the run folder
            (``trainer.default_root_dir``). The best one is written to the folder of that name with ``_best``.
        monitor: The metric that decides which is best; null writes the last only.
        mode: Whether the ``min`` or the ``max`` is best.
        license: Licence of the adapter's weights, as the hub calls it; the model card says it.

    Raises:
        SettingError: If ``mode`` is unknown, or nothing logs ``monitor`` during validation.
    """

    def __init__(
        self, folder: str | None = None, monitor: str | None = "val/loss", mode: str = "min", license: str = LICENSE
    ) -> None:
        if mode not in ("min", "max"):
            raise SettingError(f"mode={mode!r} must be min or max.")
        self.folder, self.monitor, self.mode, self.license = folder, monitor, mode, license
        self.best: float | None = None

    def target(self, trainer: pl.Trainer) -> Path:
        """The folder of this run's last adapter."""
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "adapter"

    def best_target(self, trainer: pl.Trainer) -> Path:
        """The folder of this run's best adapter."""
        target = self.target(trainer)
        return target.with_name(f"{target.name}_best")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "license": self.license}  # the licence is for `export`

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise SettingError(f"monitor={self.monitor!r} of AdapterExport must be one of {logged}.")
        value = float(trainer.callback_metrics[self.monitor])
        best = self.best
        better = best is None or (value < best if self.mode == "min" else value > best)
        if better and math.isfinite(value):
            self.best = value
            self._write(trainer, pl_module, self.best_target(trainer), {self.monitor: value})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, self.target(trainer), {})

    def _write(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path, metrics: dict[str, float]
    ) -> None:
        module = required_module(pl_module, self)
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        module.adapter.save_pretrained(folder, module.training_facts() | {"license": self.license} | metrics)

    def record(self, trainer: pl.Trainer, module: LCFModule, summary: Summary) -> None:
        """Have the cards of this run's folders say how a test of their weights went."""
        data = getattr(trainer, "datamodule", None)
        of = data.tested_on if isinstance(data, PairDataModule) else "test split"
        weights = tensors_digest({name: tensor.cpu() for name, tensor in module.adapter.state_dict().items()})
        for folder in (self.target(trainer), self.best_target(trainer)):
            record_scores(folder, weights, {arm: dict(row) for arm, row in summary["arms"].items()}, of)
