"""What a fit says: what is trained, how far it has come, what it comes to and what can be done next."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lcf_lightning.callbacks.accuracy import required_module
from lcf_lightning.cli.commands import PROGRAM
from lcf_lightning.models.loading import show_weight_bars

_TALK = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")  # loggers
_NOISE = ("Seed set to", "GPU available:", "TPU available:", "💡 Tip:", "`Trainer.fit` stopped:", "`Trainer(")
_WARNINGS = (r".*LeafSpec.*", r".*does not have many workers.*", r".*`srun` command is available.*")


def quiet() -> None:
    """Leave out what the libraries say of themselves; what they warn of stays, and so do the hub's downloads."""
    for name in _TALK:
        logging.getLogger(name).addFilter(_matters)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    show_weight_bars(False)


def _matters(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


class Overview(Callback):
    """Says before the first step how large both frozen models are, and what is trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        module = required_module(pl_module, self)
        link = module.link
        rows = [
            (role, model.spec.path, f"{model.model.num_parameters():,} parameters, frozen")
            for role, model in (("sharer", link.sharer), ("receiver", link.receiver))
        ]
        rows.append(("adapter", "", f"{module.adapter.parameter_counts()['total']:,} parameters, trained"))
        width = max(len(path) for _, path, _ in rows)
        sys.stdout.writelines(f"{role:<8}  {path:<{width}}  {what}\n" for role, path, what in rows)


class FitProgressBar(RichProgressBar):
    """One bar for the whole fit, which counts optimizer steps."""

    @property
    def total_train_batches(self) -> int | float:
        return self.trainer.estimated_stepping_batches

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


def what_next(run_folder: Path) -> str:
    """What can be done with a run that has ended."""
    return (
        "Next:\n"
        f"  {PROGRAM} evaluate --config {run_folder / 'config.yaml'}   # all arms, controls, times\n"
        f'  Channel.from_pretrained("{run_folder / "adapter"}")   # in Python: from lcf_lightning import Channel\n'
    )
