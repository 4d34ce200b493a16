"""From a sharer's cache to a message: pooled over spans (LCF-X, method.md §4), or token by token (LCF, C2C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcf_lightning.errors import GeometryError
from lcf_lightning.models.geometry import KV, Geometry

_NEVER = -1e4  # finite and within half precision: a row that is masked throughout stays free of NaN


def aligned(cache: KV, index: Tensor) -> KV:
    """The sharer's token for every token of the receiver, where both read the same text.

    Args:
        cache: ``[layers, batch, kv_heads, sharer tokens, head_dim]``.
        index: ``[batch, receiver tokens]``, int64, places in the sharer's cache.

    Returns:
        The message, ``[layers, batch, kv_heads, receiver tokens, head_dim]``.

    Raises:
        GeometryError: If ``index`` is of another batch, or points outside the cache.
    """
    layers, batch, heads, tokens, size = cache.keys.shape
    if index.dim() != 2 or len(index) != batch:
        raise GeometryError(f"index {tuple(index.shape)} must be [batch, receiver tokens] with a batch of {batch}.")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < tokens:
        raise GeometryError(f"index must hold places between 0 and {tokens - 1}; found {index.min()} … {index.max()}.")
    places = index[None, :, None, :, None].expand(layers, -1, heads, -1, size)
    return KV(*(tensor.gather(3, places) for tensor in cache))


class SpanPooler(nn.Module):
    """Attention within each span, then over the spans, with two learned queries a layer.

    Nothing here depends on the number of spans.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
    """

    def __init__(self, layers: int, sharer: Geometry) -> None:
        super().__init__()
        shape = (layers, sharer.kv_heads, sharer.head_dim)
        self.base_query = nn.Parameter(torch.randn(shape))  # over the tokens of a span
        self.layer_query = nn.Parameter(torch.randn(shape))  # over the spans

    def forward(self, cache: KV, spans: Tensor) -> KV:
        """Both steps: what `merge` gives of what `summarise` gives."""
        return self.merge(*self.summarise(cache, spans))

    def summarise(self, cache: KV, spans: Tensor) -> tuple[KV, Tensor]:
        """Pool each span of a sharer's cache.

        Args:
            cache: ``[layers, batch, kv_heads, tokens, head_dim]``.
            spans: ``[batch, tokens]``, int64: each token's span, counted from 0; -1 for tokens in none.

        Returns:
            One K and one V a span, ``[layers, batch, kv_heads, spans, head_dim]``, and ``[batch, spans]``, bool, False
            where a row has no such span and its summary is arbitrary.

        Raises:
            GeometryError: If ``spans`` has another shape than the cache's tokens, or a row has no span.
        """
        if spans.shape != (cache.keys.shape[1], cache.keys.shape[3]):
            raise GeometryError(f"spans {tuple(spans.shape)} must be [batch, tokens] of the cache {cache.keys.shape}.")
        count = int(spans.max()) + 1
        member = spans.unsqueeze(1) == torch.arange(count, device=spans.device)[:, None]  # [batch, spans, tokens]
        present = member.any(-1)  # [batch, spans]
        if not bool(present.any(-1).all()):
            raise GeometryError("spans: every row needs at least one token in a span.")
        scores = self._scores(self.base_query, cache.keys).unsqueeze(-2)  # [layers, batch, heads, 1, tokens]
        scores = scores.masked_fill(~member[:, None], _NEVER)  # [layers, batch, heads, spans, tokens]
        weights = scores.softmax(-1)
        return KV(weights @ cache.keys, weights @ cache.values), present

    def merge(self, summaries: KV, present: Tensor) -> KV:
        """Pool the summaries of any number of spans, of one sharer or of several.

        Args:
            summaries: ``[layers, batch, kv_heads, spans, head_dim]``, finite also where absent.
            present: ``[batch, spans]``, bool, at least one True a row.

        Returns:
            ``[layers, batch, kv_heads, 1, head_dim]``.
        """
        scores = self._scores(self.layer_query, summaries.keys).masked_fill(~present[:, None], _NEVER)
        weights = scores.softmax(-1).unsqueeze(-2)  # [layers, batch, heads, 1, spans]
        return KV(weights @ summaries.keys, weights @ summaries.values)

    @staticmethod
    def _scores(query: Tensor, keys: Tensor) -> Tensor:
        """Scaled dot products of ``[layers, heads, size]`` with ``[layers, batch, heads, n, size]``."""
        return torch.einsum("lhd,lbhnd->lbhn", query, keys) * query.shape[-1] ** -0.5
