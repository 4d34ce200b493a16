"""Building blocks of poolers and fusers: one copy per edited layer, computed in batched products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lcf_lightning.errors import GeometryError
from lcf_lightning.host import Extent, require_places
from lcf_lightning.models.geometry import KV

NEVER = -1e4
"""A masked score: finite and within half precision, so that a row that is masked throughout stays free of NaN."""


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
    """Per layer, a residual block ``z + W2·GELU(W1·RMSNorm(z))``, bias-free (LCF, arXiv 2605.22863).

    Args:
        layers: Number of blocks.
        width: Features of ``z``.
        hidden: Features between the two maps.
        dropout: Probability of dropping a hidden feature in training.
        norm_eps: What RMSNorm adds to the mean square; null for the smallest step of the dtype at 1.

    Attributes:
        recomputed: Whether only the input is kept for the backward pass, which computes the block once more, with the
            same dropout (activation checkpointing).
    """

    recomputed: bool = False

    def __init__(self, layers: int, width: int, hidden: int, dropout: float, norm_eps: float | None = 1e-6) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(layers, 1, width))
        self.up = LayerLinear(layers, width, hidden, bias=False)
        self.down = LayerLinear(layers, hidden, width, bias=False)
        self.dropout, self.norm_eps = dropout, norm_eps

    def forward(self, z: Tensor) -> Tensor:
        """``[layers, rows, width] → [layers, rows, width]``."""
        if not self.recomputed:
            return self._block(z)
        block: Tensor = checkpoint(self._block, z, use_reentrant=False)
        return block

    def _block(self, z: Tensor) -> Tensor:
        hidden = F.gelu(self.up(F.rms_norm(z, z.shape[-1:], eps=self.norm_eps) * self.norm))
        return z + self.down(F.dropout(hidden, self.dropout, self.training))


def flatten(*tensors: Tensor) -> Tensor:
    """Heads side by side, tensors of one head size side by side: ``[layers, batch, tokens, features]``."""
    return torch.cat([tensor.transpose(2, 3) for tensor in tensors], dim=3).flatten(3)


def within_spans(scores: Tensor, cache: KV, spans: Tensor, extent: Extent | None = None) -> tuple[Tensor, Tensor]:
    """Attention weights within each span, ``[layers, batch, queries, spans, tokens]``, and which spans are there.

    Args:
        scores: ``[layers, batch, queries, tokens]``.
        cache: ``[layers, batch, kv_heads, tokens, head_dim]``.
        spans: ``[batch, tokens]``, int64, the span of each token, -1 for none.
        extent: Of ``spans``; null to look.
    """
    count = require_spans(cache, spans, extent).spans
    member = spans.unsqueeze(1) == torch.arange(count, device=spans.device)[:, None]
    return scores.unsqueeze(-2).masked_fill(~member[:, None], NEVER).softmax(-1), member.any(-1)


def require_spans(cache: KV, spans: Tensor, extent: Extent | None = None) -> Extent:
    """How far ``spans`` go, found by a look at the device unless it is known; then each row is known to have a span.

    Raises:
        GeometryError: Unless ``spans`` has the cache's batch and tokens, and every row a token in a span.
    """
    expected = (cache.keys.shape[1], cache.keys.shape[3])
    if spans.shape != expected:
        raise GeometryError(f"spans {tuple(spans.shape)} must be [batch, tokens] of the cache, {expected}.")
    if extent is not None:
        return extent
    if not bool((spans >= 0).any(-1).all()):
        raise GeometryError("spans: every row needs at least one token in a span.")
    return Extent.of(spans)


def aligned(cache: KV, index: Tensor, extent: Extent | None = None) -> KV:
    """The sharer's token for every token of the receiver, where both read the same text.

    Args:
        cache: ``[layers, batch, kv_heads, sharer tokens, head_dim]``.
        index: ``[batch, receiver tokens]``, int64, places in the sharer's cache.
        extent: Of ``index``, whose places are then known to be in the cache; null to look.

    Returns:
        The message, ``[layers, batch, kv_heads, receiver tokens, head_dim]``.

    Raises:
        GeometryError: If ``index`` is of another batch, or points outside the cache.
    """
    layers, batch, heads, tokens, size = cache.keys.shape
    if index.dim() != 2 or len(index) != batch:
        raise GeometryError(f"index {tuple(index.shape)} must be [batch, receiver tokens] with a batch of {batch}.")
    if extent is None and index.numel():
        require_places(int(index.min()), int(index.max()), tokens)
    places = index[None, :, None, :, None].expand(layers, -1, heads, -1, size)
    return KV(*(tensor.gather(3, places) for tensor in cache))


def joint_linear(linear: LayerLinear, sharer: Tensor, receiver: Tensor | None) -> Tensor:
    """``linear([sharer; receiver])`` without building the joint input.

    A pooled message has one token, so its share of the product is computed once per example, not once per token.
    """
    if receiver is None:
        return linear(sharer.flatten(1, 2)).unflatten(1, sharer.shape[1:3])
    split = sharer.shape[-1]
    left = torch.bmm(sharer.flatten(1, 2), linear.weight[:, :split]).unflatten(1, sharer.shape[1:3])
    assert linear.bias is not None
    right = torch.baddbmm(linear.bias, receiver.flatten(1, 2), linear.weight[:, split:])
    return right.unflatten(1, receiver.shape[1:3]) + left


def weigh(alpha: Tensor, delta: Tensor, batch: int, size: int) -> Tensor:
    """``α ⊙ Δ`` as ``[layers, batch, heads, tokens, head size]`` from ``[layers, batch·tokens, …]``."""
    weighted = alpha.unsqueeze(-1) * delta.unflatten(-1, (-1, size))
    return weighted.unflatten(1, (batch, -1)).transpose(2, 3)
