"""The fusers' building blocks: one copy per edited layer, computed in batched products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerLinear(nn.Module):
    """As many independent linear maps as there are layers, computed in one batched product.

    Each is initialised as ``nn.Linear`` would be.

    Args:
        layers: Number of maps.
        inputs: Input features of each.
        outputs: Output features of each.
        bias: Whether each has a bias.
    """

    def __init__(self, layers: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(layers, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(layers, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[layers, rows, inputs] → [layers, rows, outputs]``."""
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class LayerFFN(nn.Module):
    """Per layer, a residual block ``z + W2·GELU(W1·RMSNorm(z))``, bias-free (method.md §2.2).

    Args:
        layers: Number of blocks.
        width: Features of ``z``.
        hidden: Features between the two maps.
        dropout: Probability of dropping a hidden feature in training.
    """

    def __init__(self, layers: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(layers, 1, width))
        self.up = LayerLinear(layers, width, hidden, bias=False)
        self.down = LayerLinear(layers, hidden, width, bias=False)
        self.dropout = dropout

    def forward(self, z: Tensor) -> Tensor:
        """``[layers, rows, width] → [layers, rows, width]``."""
        hidden = F.gelu(self.up(F.rms_norm(z, z.shape[-1:]) * self.norm))
        return z + self.down(F.dropout(hidden, self.dropout, self.training))


def flatten(*tensors: Tensor) -> Tensor:
    """Heads side by side, tensors side by side: ``[layers, batch, tokens, features]``."""
    return torch.cat([tensor.transpose(2, 3).flatten(3) for tensor in tensors], dim=-1)
