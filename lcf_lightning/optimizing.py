"""What of an adapter the optimizer shrinks, and how fast it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
