"""`AdapterExport`: the adapter folder that a run leaves behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lcf_lightning.data.datamodule import ContextMismatchDataModule
from lcf_lightning.errors import SettingError
from lcf_lightning.module import LCFModule


class AdapterExport(pl.Callback):
    """Writes the adapter folder at the end of a fit, with what its user must know: how prompts were written.

    Args:
        folder: Where to write; by default ``adapter`` under the run folder (``trainer.default_root_dir``).
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def target(self, trainer: pl.Trainer) -> Path:
        """The folder that this run's adapter is written to."""
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "adapter"

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, LCFModule):
            raise SettingError(f"AdapterExport needs an LCFModule, not a {type(pl_module).__name__}.")
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        data = getattr(trainer, "datamodule", None)
        metadata: dict[str, Any] = {"steps": trainer.global_step, "seed": pl_module.seed}
        if isinstance(data, ContextMismatchDataModule):
            metadata |= {"prompts": asdict(data.prompts)}
        pl_module.adapter.save_pretrained(self.target(trainer), metadata)
