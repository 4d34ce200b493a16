"""`GateMonitor`: which layers the adapter edits, and how surely."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lcf_lightning.callbacks.accuracy import required_module
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lcf_lightning.errors import SettingError
from lcf_lightning.loggers import is_logged


class GateMonitor(pl.Callback):
    """Logs how many layer gates are open, and a picture of them all.

    ``gates/open_keys`` and ``gates/open_values`` count the layers whose gate the hard gate of evaluation opens. The
    picture ``gates/by_layer`` goes to every logger that takes figures, as TensorBoard does.

    Args:
        every_n_steps: Training steps from one picture to the next; one is always logged at the end.

    Raises:
        SettingError: If ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 1:
            raise SettingError(f"every_n_steps={every_n_steps} must be at least 1.")
        self.every_n_steps = every_n_steps
        self._pictured = -1  # the step of the last picture: accumulated batches share a step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        gates = required_module(pl_module, self).adapter.gates
        if is_logged(trainer):
            with torch.no_grad():
                keys, values = gates().sum(0)
            pl_module.log_dict({"gates/open_keys": keys, "gates/open_values": values})
        if trainer.global_step % self.every_n_steps == 0:
            self._picture(trainer, gates.logits)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._picture(trainer, required_module(pl_module, self).adapter.gates.logits)

    def _picture(self, trainer: pl.Trainer, logits: Tensor) -> None:
        if not trainer.is_global_zero or self._pictured == trainer.global_step:
            return
        self._pictured = trainer.global_step
        for logger in trainer.loggers:
            add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
            if add_figure is not None:
                add_figure("gates/by_layer", gates_figure(logits), trainer.global_step)


def gates_figure(logits: Tensor) -> Figure:
    """The noise-free gate ``σ(logit)`` of every edited layer.

    Args:
        logits: ``[layers, 2]``: keys, values.
    """
    values = torch.sigmoid(logits.detach().float().cpu())
    figure = Figure(figsize=(max(4.0, 0.25 * len(values) + 2), 3), layout="constrained")
    axes: Axes = figure.subplots()
    layers = range(len(values))
    for offset, column, name, colour in ((-0.2, 0, "keys", "#2c5f8a"), (0.2, 1, "values", "#c0392b")):
        places = [layer + offset for layer in layers]
        axes.bar(places, values[:, column].tolist(), width=0.4, label=name, color=colour)
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle="--", label="open above")
    axes.set_ylim(0, 1)
    axes.set_xlabel("edited layer, in the adapter's order")
    axes.set_ylabel("σ(gate logit)")
    figure.suptitle("Gates by layer, without noise", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
