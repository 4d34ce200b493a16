"""A vector a span, each of which becomes a token of the receiver's: its own attention then finds what it needs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lcf_lightning.adapter.layers import LayerLinear, flatten, within_spans
from lcf_lightning.adapter.parts import PartShape, Pooler, Summaries
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV


class PrefixPooler(Pooler):
    """Span summaries that become tokens of the receiver's cache, before its own.

    ``K~_p^h = Σ_t softmax_t(w_K^h · x_t) k_t^h`` over the tokens ``t`` of span ``p``, and ``V~_p^h`` with ``w_V^h``,
    where ``x_t`` holds the keys and values of all heads, divided by their root mean square: what a key says of a span,
    and what a value does, may come from different tokens. ``4·H_s² D_s`` parameters a layer.

    The fuser then reads ``[K~_p; V~_p]`` alone, ``2·H_r D_r`` inputs fewer, and writes a key and a value.
    Beyond the paper: one vector for all tokens, or a residual on tokens that mean something already, must hold every
    fact at once if nobody knows which one will be asked for; the receiver's attention can choose among tokens.

    Args:
        shape: What it is built for.
    """

    alias = "prefix"
    label = "{fuser} prefix"
    prepends = True

    def __init__(self, shape: PartShape) -> None:
        super().__init__()
        sharer = shape.sharer
        self.queries = LayerLinear(shape.layers, 2 * sharer.width, 2 * sharer.kv_heads, bias=False)

    def summarise(self, cache: KV, spans: Tensor, extent: Extent | None = None) -> Summaries:
        x = flatten(*cache)
        scores = self.queries(F.rms_norm(x, x.shape[-1:]).flatten(1, 2)).unflatten(1, x.shape[1:3]).transpose(2, 3)
        weights, present = within_spans(scores, cache, spans, extent)
        by_key, by_value = weights.chunk(2, dim=2)
        return Summaries(KV(by_key @ cache.keys, by_value @ cache.values), present)
