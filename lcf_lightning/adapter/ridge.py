"""Ridge regression in closed form: how a cache of one model is predicted from that of another."""

from __future__ import annotations

import torch
from torch import Tensor

PENALTY = 1e-2
"""λ over the number of rows, on inputs of standard deviation 1."""


def ridge(inputs: Tensor, outputs: Tensor, penalty: float = PENALTY) -> Tensor:
    """Bias and weights that predict ``outputs``: ``W = (XᵀX + λI)⁻¹ XᵀY`` on standardised inputs.

    Args:
        inputs: ``[rows, n]``, float32.
        outputs: ``[rows, m]``, float32.
        penalty: λ over the number of rows.

    Returns:
        ``[1 + n, m]``, for inputs as they are: ``outputs ≈ [1; inputs] @ map``. Inputs that never change weigh nothing.
    """
    x, mean, deviation = _standardised(inputs)
    center = outputs.mean(0)
    gram, cross = x.T @ x, x.T @ (outputs - center)
    gram.diagonal().add_(penalty * len(x))
    weights = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)) / deviation[:, None]
    return torch.cat([(center - mean @ weights)[None], weights])


def best_sources(inputs: Tensor, outputs: Tensor, count: int) -> Tensor:
    """For each output layer the ``count`` input layers that predict it best, each alone, ascending.

    Args:
        inputs: ``[input layers, rows, n]``, float32.
        outputs: ``[output layers, rows, m]``, float32.
        count: At most as many as there are input layers.

    Returns:
        ``[output layers, count]``, int64.
    """
    unexplained = torch.stack([_unexplained(layer, outputs) for layer in inputs], dim=1)
    return unexplained.topk(count, dim=1, largest=False).indices.sort(dim=1).values


def _unexplained(inputs: Tensor, outputs: Tensor) -> Tensor:
    """For each output layer the part of its variance that one input layer does not predict, ``[output layers]``."""
    layers, rows, _ = outputs.shape
    joint = outputs.transpose(0, 1).flatten(1)
    weights = ridge(inputs, joint)
    errors = (joint - weights[0] - inputs @ weights[1:]).square().sum(0)
    variance = (joint - joint.mean(0)).square().sum(0)
    return errors.view(layers, -1).sum(1) / variance.view(layers, -1).sum(1).clamp(min=torch.finfo().tiny * rows)


def _standardised(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of mean 0 and deviation 1, and what they were; one that never changes is zero."""
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.inf)
    return (inputs - mean) / deviation, mean, deviation
