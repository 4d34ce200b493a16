"""From a sharer's cache to a message, and what each receiver token takes of it.

Token by token where both models read the same text (LCF, C2C). Else pooled over spans, each span a summary; then

    span       one vector for all receiver tokens, pooled over the summaries (LCF-X, method.md §4)
    retrieval  each receiver token weighs the summaries for itself: a message may be written before it is known what
               will be asked of it
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcf_lightning.adapter.layers import LayerLinear, flatten
from lcf_lightning.errors import GeometryError
from lcf_lightning.models.geometry import KV, Geometry

_NEVER = -1e4  # finite and within half precision: a row that is masked throughout stays free of NaN


class Sent(NamedTuple):
    """What a receiver is given of one sharer or of several.

    Attributes:
        kv: ``[layers, batch, sharer heads, n, sharer head size]``: n span summaries, their pool (1), or, where both
            models read the same text, the sharer's tokens that the receiver's n tokens are aligned with. Finite also
            where absent.
        present: ``[batch, n]``, bool, False on padding.
    """

    kv: KV
    present: Tensor


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


class SpanSummaries(nn.Module):
    """Attention within each span, with one learned query a layer and head: a summary of each span.

    Nothing here depends on the number of spans.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        spread: Standard deviation of the initial query.
    """

    def __init__(self, layers: int, sharer: Geometry, spread: float) -> None:
        super().__init__()
        self.base_query = nn.Parameter(torch.randn(layers, sharer.kv_heads, sharer.head_dim) * spread)

    def summarise(self, cache: KV, spans: Tensor) -> Sent:
        """Summarise each span of a sharer's cache.

        Args:
            cache: ``[layers, batch, kv_heads, tokens, head_dim]``.
            spans: ``[batch, tokens]``, int64, the span of each token, -1 for none.

        Raises:
            GeometryError: If ``spans`` has not the cache's batch and tokens, or a row has no span.
        """
        expected = (cache.keys.shape[1], cache.keys.shape[3])
        if spans.shape != expected:
            raise GeometryError(f"spans {tuple(spans.shape)} must be [batch, tokens] of the cache, {expected}.")
        if not bool((spans >= 0).any(-1).all()):
            raise GeometryError("spans: every row needs at least one token in a span.")
        member = spans.unsqueeze(1) == torch.arange(int(spans.max()) + 1, device=spans.device)[:, None]
        scores = self._scores(self.base_query, cache.keys).unsqueeze(-2).masked_fill(~member[:, None], _NEVER)
        weights = scores.softmax(-1)  # [layers, batch, heads, spans, tokens]
        return Sent(KV(weights @ cache.keys, weights @ cache.values), member.any(-1))

    def merge(self, sent: Sent) -> Sent:
        """What can be pooled further before the receiver is known: here nothing."""
        return sent

    def weights(self, sent: Sent, receiver: KV) -> Tensor | None:
        """How much each receiver token takes of each part of what was sent, ``[layers, batch, tokens, n]``.

        None where there is one part for all tokens, or one for each.
        """
        return None

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scaled dot products of ``[layers, heads, size]`` with ``[layers, batch, heads, n, size]``."""
        return torch.einsum("lhd,lbhnd->lbhn", query, keys) * query.shape[-1] ** -0.5


class SpanPooler(SpanSummaries):
    """The paper's LCF-X pooler: attention within each span, then over the summaries, with two learned queries.

    ``K~_p = softmax_t(q_base · k_t / √D) k_t`` over the tokens ``t`` of span ``p``, and with the same weights ``V~_p``;
    ``K* = softmax_p(q_layer · K~_p / √D) K~_p``, and ``V*``, for all receiver tokens. ``2·H_s D_s`` parameters a layer.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry, which means nothing here.
        rank: Means nothing here.
    """

    def __init__(self, layers: int, sharer: Geometry, receiver: Geometry, rank: int) -> None:
        super().__init__(layers, sharer, spread=1.0)
        self.layer_query = nn.Parameter(torch.randn_like(self.base_query))  # over the summaries

    def merge(self, sent: Sent) -> Sent:
        """One vector of any number of summaries, at least one of each row present."""
        keys, values = sent.kv
        scores = self._scores(self.layer_query, keys).masked_fill(~sent.present[:, None], _NEVER)
        weights = scores.softmax(-1).unsqueeze(-2)  # [layers, batch, heads, 1, spans]
        return Sent(KV(weights @ keys, weights @ values), sent.present.any(1, keepdim=True))


class RetrievalPooler(SpanSummaries):
    """Span summaries that each receiver token retrieves from by attention.

    Token ``t`` hears ``Σ_p softmax_p(a_t · b_p) [K~_p; V~_p]`` with ``a_t = W_a n([R_K; R_V]_t) + b`` and
    ``b_p = W_b n([K~_p; V~_p]) + b``, both of size ``rank``; ``n`` divides by the root mean square. A summary's own
    weights are ``softmax_t(q_base · n(k_t))``. Its query starts near zero, so that a summary starts as its span's mean
    and keeps something of every token: a query that starts sharp picks tokens at random, and little moves it from
    there. ``H_s D_s + rank·(2·H_s D_s + 2·H_r D_r + 2)`` parameters a layer.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry.
        rank: Size of ``a`` and ``b``.
    """

    def __init__(self, layers: int, sharer: Geometry, receiver: Geometry, rank: int) -> None:
        super().__init__(layers, sharer, spread=0.05)
        self.queries = LayerLinear(layers, 2 * receiver.width, rank)
        self.addresses = LayerLinear(layers, 2 * sharer.width, rank)

    def weights(self, sent: Sent, receiver: KV) -> Tensor:
        """See `SpanSummaries.weights`."""
        scores = _mapped(self.queries, receiver) @ _mapped(self.addresses, sent.kv).transpose(-1, -2)
        return scores.masked_fill(~sent.present[:, None], _NEVER).softmax(-1)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.einsum("lhd,lbhnd->lbhn", query, F.rms_norm(keys, keys.shape[-1:]))


POOLERS: dict[str, type[SpanPooler] | type[RetrievalPooler]] = {"span": SpanPooler, "retrieval": RetrievalPooler}


def _mapped(linear: LayerLinear, cache: KV) -> Tensor:
    """``linear`` of each token's normalised keys and values, ``[layers, batch, tokens, rank]``."""
    x = flatten(*cache)
    return linear(F.rms_norm(x, x.shape[-1:]).flatten(1, 2)).unflatten(1, x.shape[1:3])
