"""Layer gates: one learned switch per layer for keys and one for values (LCF, arXiv 2605.22863)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class LayerGates(nn.Module):
    """Learned switches, soft and noisy in training, hard in evaluation.

    Args:
        layers: Number of edited layers.
        noise: In training: ``logistic`` (Gumbel-sigmoid; open at a logit of 0 in one half of the draws), ``gumbel``
            (one Gumbel sample, as C2C's code has it: 0.632) or ``none``.
        initial_logit: Where every gate starts. 0 is *off* under the hard gate; LCF starts at 0, LCF-X at +1.
    """

    def __init__(self, layers: int, initial_logit: float, noise: str = "logistic") -> None:
        super().__init__()
        self.noise = noise
        self.logits = nn.Parameter(torch.full((layers, 2), float(initial_logit)))  # keys, values

    @property
    def open(self) -> Tensor:
        """Places of the layers that the hard gate edits, ascending, int64: those with either logit above 0."""
        return (self.logits > 0).any(-1).nonzero().flatten()

    def forward(self, temperature: float | None = None) -> Tensor:
        """Gate values ``[layers, 2]`` (keys, values), float.

        Args:
            temperature: For training: ``σ((logit + noise) / temperature)``, drawn from torch's global generator. None,
                for evaluation: 1 where the logit is above 0, else 0.
        """
        if temperature is None:
            return (self.logits > 0).to(self.logits.dtype)
        return torch.sigmoid((self.logits + _NOISES[self.noise](self.logits)) / temperature)


def _uniform(like: Tensor) -> Tensor:
    return torch.rand_like(like).clamp(1e-6, 1 - 1e-6)


_NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda logits: torch.logit(_uniform(logits)),
    "gumbel": lambda logits: -torch.log(-torch.log(_uniform(logits))),
    "none": torch.zeros_like,
}
