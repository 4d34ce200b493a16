"""The paper's LCF-X pooler: one vector, of all spans, that edits every token of the receiver (arXiv 2605.22863)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcf_lightning.adapter.layers import NEVER, within_spans
from lcf_lightning.adapter.parts import PartShape, Pooler, Summaries
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV


class SpanPooler(Pooler):
    """The paper's LCF-X pooler: attention within each span, then over the summaries, with two learned queries.

    ``K~_p = Σ_t softmax_t(q_base · k_t / √D) k_t`` over the tokens ``t`` of span ``p``, and with the same weights
    ``V~_p``; ``K* = Σ_p softmax_p(q_layer · K~_p / √D) K~_p``, and ``V*``, for all of the receiver's tokens. Nothing
    depends on the number of spans. ``2·H_s D_s`` parameters a layer.

    Args:
        shape: What it is built for.
    """

    alias = "span"
    label = "{fuser}-X"
    poolable = True

    def __init__(self, shape: PartShape) -> None:
        super().__init__()
        queries = (shape.layers, shape.sharer.kv_heads, shape.sharer.head_dim)
        self.base_query = nn.Parameter(torch.randn(queries))  # over the tokens of a span
        self.layer_query = nn.Parameter(torch.randn(queries))  # over the spans

    def summarise(self, cache: KV, spans: Tensor, extent: Extent | None = None) -> Summaries:
        weights, present = within_spans(self._scores(self.base_query, cache.keys), cache, spans, extent)
        return Summaries(KV(weights @ cache.keys, weights @ cache.values), present)

    def merge(self, summaries: Summaries) -> Summaries:
        """One vector of any number of summaries, of one sharer or of several, at least one of each row present."""
        keys, values = summaries.kv
        scores = self._scores(self.layer_query, keys).masked_fill(~summaries.present[:, None], NEVER)
        weights = scores.softmax(-1).unsqueeze(-2)  # [layers, batch, heads, 1, spans]
        return Summaries(KV(weights @ keys, weights @ values), summaries.present.any(1, keepdim=True))

    @staticmethod
    def _scores(query: Tensor, keys: Tensor) -> Tensor:
        """Scaled dot products of ``[layers, heads, size]`` with ``[layers, batch, heads, n, size]``."""
        return torch.einsum("lhd,lbhnd->lbhn", query, keys) * query.shape[-1] ** -0.5
