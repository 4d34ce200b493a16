"""From a sharer's cache to a message: token by token where both models read the same text (LCF, C2C), else by spans.

span    one vector that edits every token of the receiver (LCF-X, method.md §4)
prefix  a vector a span, each of which becomes a token of the receiver's: its own attention then finds what it needs
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
        kv: ``[layers, batch, sharer heads, n, sharer head size]``: n span summaries, their pool (n = 1), or, where both
            models read the same text, the sharer's tokens that the receiver's n tokens are aligned with. Finite also
            where absent.
        present: ``[batch, n]``, bool, False on padding of spans. Of aligned tokens all are marked: which of them are
            padding the receiver's own mask says.
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


class SpanPooler(nn.Module):
    """The paper's LCF-X pooler: attention within each span, then over the summaries, with two learned queries.

    ``K~_p = Σ_t softmax_t(q_base · k_t / √D) k_t`` over the tokens ``t`` of span ``p``, and with the same weights
    ``V~_p``; ``K* = Σ_p softmax_p(q_layer · K~_p / √D) K~_p``, and ``V*``, for all of the receiver's tokens. Nothing
    depends on the number of spans. ``2·H_s D_s`` parameters a layer.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
    """

    def __init__(self, layers: int, sharer: Geometry) -> None:
        super().__init__()
        shape = (layers, sharer.kv_heads, sharer.head_dim)
        self.base_query = nn.Parameter(torch.randn(shape))  # over the tokens of a span
        self.layer_query = nn.Parameter(torch.randn(shape))  # over the spans

    def summarise(self, cache: KV, spans: Tensor) -> Sent:
        """Summarise each span of a sharer's cache.

        Args:
            cache: ``[layers, batch, kv_heads, tokens, head_dim]``.
            spans: ``[batch, tokens]``, int64, the span of each token, -1 for none.

        Raises:
            GeometryError: If ``spans`` has not the cache's batch and tokens, or a row has no span.
        """
        weights, present = _within_spans(self._scores(self.base_query, cache.keys), cache, spans)
        return Sent(KV(weights @ cache.keys, weights @ cache.values), present)

    def merge(self, sent: Sent) -> Sent:
        """One vector of any number of summaries, of one sharer or of several, at least one of each row present."""
        keys, values = sent.kv
        scores = self._scores(self.layer_query, keys).masked_fill(~sent.present[:, None], _NEVER)
        weights = scores.softmax(-1).unsqueeze(-2)  # [layers, batch, heads, 1, spans]
        return Sent(KV(weights @ keys, weights @ values), sent.present.any(1, keepdim=True))

    @staticmethod
    def _scores(query: Tensor, keys: Tensor) -> Tensor:
        """Scaled dot products of ``[layers, heads, size]`` with ``[layers, batch, heads, n, size]``."""
        return torch.einsum("lhd,lbhnd->lbhn", query, keys) * query.shape[-1] ** -0.5


class PrefixPooler(nn.Module):
    """Span summaries that become tokens of the receiver's cache, before its own.

    ``K~_p^h = Σ_t softmax_t(w_K^h · x_t) k_t^h`` over the tokens ``t`` of span ``p``, and ``V~_p^h`` with ``w_V^h``,
    where ``x_t`` holds the keys and values of all heads, divided by their root mean square: what a key says of a span,
    and what a value does, may come from different tokens. ``4·H_s² D_s`` parameters a layer.

    The fuser then reads ``[K~_p; V~_p]`` alone, ``2·H_r D_r`` inputs fewer, and writes a key and a value.
    Beyond the paper: one vector for all tokens, or a residual on tokens that mean something already, must hold every
    fact at once if nobody knows which one will be asked for; the receiver's attention can choose among tokens.

    Args:
        layers: Number of layers.
        sharer: The sharer's geometry.
    """

    def __init__(self, layers: int, sharer: Geometry) -> None:
        super().__init__()
        self.queries = LayerLinear(layers, 2 * sharer.width, 2 * sharer.kv_heads, bias=False)

    def summarise(self, cache: KV, spans: Tensor) -> Sent:
        """See `SpanPooler.summarise`."""
        x = flatten(*cache)
        scores = self.queries(F.rms_norm(x, x.shape[-1:]).flatten(1, 2)).unflatten(1, x.shape[1:3]).transpose(2, 3)
        weights, present = _within_spans(scores, cache, spans)
        by_key, by_value = weights.chunk(2, dim=2)
        return Sent(KV(by_key @ cache.keys, by_value @ cache.values), present)

    def merge(self, sent: Sent) -> Sent:
        """The summaries as they are: each is a token."""
        return sent


POOLERS: dict[str, type[SpanPooler] | type[PrefixPooler]] = {"span": SpanPooler, "prefix": PrefixPooler}


def _within_spans(scores: Tensor, cache: KV, spans: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights within each span, ``[layers, batch, queries, spans, tokens]``, and which spans are there.

    Args:
        scores: ``[layers, batch, queries, tokens]``.
        cache: ``[layers, batch, kv_heads, tokens, head_dim]``.
        spans: ``[batch, tokens]``, int64, the span of each token, -1 for none.
    """
    expected = (cache.keys.shape[1], cache.keys.shape[3])
    if spans.shape != expected:
        raise GeometryError(f"spans {tuple(spans.shape)} must be [batch, tokens] of the cache, {expected}.")
    if not bool((spans >= 0).any(-1).all()):
        raise GeometryError("spans: every row needs at least one token in a span.")
    member = spans.unsqueeze(1) == torch.arange(int(spans.max()) + 1, device=spans.device)[:, None]
    return scores.unsqueeze(-2).masked_fill(~member[:, None], _NEVER).softmax(-1), member.any(-1)
