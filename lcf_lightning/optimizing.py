"""What of an adapter the optimizer shrinks, and how fast it learns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lcf_lightning.errors import SettingError
from lcf_lightning.training import total_steps


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as in the paper."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)


def build_optimizer(make: Callable[[Any], torch.optim.Optimizer], module: nn.Module, groups: int | None = None) -> Any:
    """The optimizer of a module's parameters, whose weight decay, where it has one, is for matrices and queries alone.

    Biases, norms and gates are no maps that could grow: to shrink them moves what is learned, and closes gates.

    Args:
        make: From parameters, or groups of them, to an optimizer.
        module: An adapter, the first dimension of whose parameters counts layers.
        groups: How many groups the fit had that is continued: one before there were two. Null for what is right.
    """
    parameters = list(module.parameters())
    optimizer = make(parameters)
    if groups == 1 or (groups is None and not optimizer.defaults.get("weight_decay")):
        return optimizer
    matrices = [parameter for parameter in parameters if is_matrix(parameter)]
    others = [parameter for parameter in parameters if not is_matrix(parameter)]
    both: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return make([group for group in both if group["params"]])


def names_of(
    make: Callable[[Any], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any] | None,
    module: nn.Module,
) -> dict[str, Any]:
    """As hyperparameters: the optimizer's name and settings, without those that are off, and the scheduler's name."""
    optimizer = make(list(module.parameters()))
    given = {name: value for name, value in optimizer.defaults.items() if value is not None and value is not False}
    scheduler = None if schedule is None else type(schedule(optimizer)).__name__
    return {"optimizer": {"name": type(optimizer).__name__, **given}, "lr_scheduler": scheduler}


def is_matrix(parameter: Tensor) -> bool:
    """Whether each layer has a matrix there: two dimensions, both above 1."""
    return sum(size > 1 for size in parameter.shape[1:]) >= 2


def warmup_and_decay(warmup: float, total: int) -> Callable[[int], float]:
    """From a step to its part of the learning rate: up over ``warmup`` steps, then down to 0 at ``total``, linearly."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (total - step) / max(1.0, total - warmup))

    return factor


def scheduled(
    optimizer: torch.optim.Optimizer,
    make: Callable[[torch.optim.Optimizer], Any] | None,
    warmup: float,
    trainer: Trainer,
) -> dict[str, Any]:
    """What changes the learning rate, as `configure_optimizers` gives it to Lightning.

    Args:
        optimizer: Of the adapter.
        make: The user's own scheduler; null for `warmup_and_decay` over the fit.
        warmup: Steps of warm-up, or, below 1, their fraction of all.
        trainer: Knows how long the fit is and when it is validated.
    """
    if make is None:
        total = total_steps(trainer)
        schedule = warmup_and_decay(warmup * total if warmup < 1 else warmup, total)
        return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, schedule), "interval": "step"}
    scheduler = make(optimizer)
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    # Lightning counts a scheduler's steps within an epoch, and validations over all: `after_validation` steps it.
    return {"scheduler": scheduler, "monitor": monitored(scheduler), "interval": "epoch", "frequency": sys.maxsize}


def monitored(scheduler: Any) -> str:
    """What a plateau is looked for in."""
    return getattr(scheduler, "monitor", None) or "val/loss"


def after_validation(trainer: Trainer) -> None:
    """Have a scheduler that looks for a plateau look at what was validated.

    Raises:
        SettingError: If what it looks at was not logged.
    """
    for each in trainer.lr_scheduler_configs:
        if isinstance(each.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            name, logged = monitored(each.scheduler), trainer.callback_metrics
            if name not in logged:
                raise SettingError(f"monitor={name!r} of lr_scheduler must be one of {', '.join(sorted(logged))}.")
            each.scheduler.step(float(logged[name]))


def set_rate(scheduler: Any, rate: float) -> None:
    """Have a scheduler start from another learning rate; one that scales none (a plateau's) has nothing to be told."""
    if not hasattr(scheduler, "base_lrs"):
        return
    now = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.get_last_lr(), strict=True)
    for group, base, last in now:
        group["initial_lr"], group["lr"] = rate, rate * (last / base if base else 1.0)
    scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
