"""The sharer's own tokens, put before the receiver's: nothing is summarised, and what is sent can be read at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lcf_lightning.adapter.layers import flatten, require_spans
from lcf_lightning.adapter.parts import PartShape, Pooler, Summaries
from lcf_lightning.adapter.ridge import best_sources, ridge
from lcf_lightning.errors import SettingError
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV


class CarryPooler(Pooler):
    """The tokens of the sharer's spans as tokens of the receiver, before its own, in every layer (beyond the paper).

    Where both sides are one model, a token that the one has cached is one that the other can read, once its key is
    un-rotated: it is sent as it is. Else the keys and the values of each receiver layer are a linear map of those of
    the ``sources`` sharer layers that predict them best, one by one. The maps have a closed form, ridge regression on
    texts that both models have read, which a fit computes by itself; they are not trained.

    The fuser corrects these tokens, in units in which the receiver's own have mean 0 and deviation 1:
    ``R' = [S + σ·g·(α ⊙ Δ); R]``, ``Δ`` of ``(S − μ) / σ`` and zero at first. A fit measures ``μ`` and ``σ`` of each
    layer's keys and values, un-rotated, on the same texts.

    Args:
        shape: What it is built for.
        sources: Sharer layers that each map reads; where both sides are one model, there is none.

    Attributes:
        mean: ``[layers, 2, 1, H_r, 1, D_r]``, μ of keys and of values.
        deviation: The same shape, σ; zero until it is fitted.
        sources: ``[layers, 2, sources]``, the sharer layers that keys and values are mapped from, as floats.
        maps: ``[layers, 2, 1 + sources·H_s D_s, H_r D_r]``, a bias and the weights of keys and of values.

    Raises:
        SettingError: If ``sources`` is below 1 or above the sharer's layers.
    """

    alias = "carry"
    label = "{fuser} carry"
    prepends = True
    carries = True

    mean: Tensor
    deviation: Tensor
    sources: Tensor
    maps: Tensor

    def __init__(self, shape: PartShape, sources: int = 3) -> None:
        super().__init__()
        sharer, receiver = shape.sharer, shape.receiver
        if not 1 <= sources <= sharer.layers:
            raise SettingError(f"sources={sources} of pooler=carry must be between 1 and {sharer.layers}.")
        self.head_dim, self.is_mapped = receiver.head_dim, not shape.same_model
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros(shape.layers, 2, 1, receiver.kv_heads, 1, receiver.head_dim))
        if self.is_mapped:
            self.register_buffer("sources", torch.zeros(shape.layers, 2, sources))
            self.register_buffer("maps", torch.zeros(shape.layers, 2, 1 + sources * sharer.width, receiver.width))

    @property
    def unfitted(self) -> bool:
        return not bool(self.deviation.any())

    def fit(self, sharer: KV, receiver: KV) -> None:
        for side, (x, y) in enumerate(zip(sharer, receiver, strict=True)):
            y = y.float()
            self.mean[:, side] = y.mean(3, keepdim=True).to(self.mean)
            self.deviation[:, side] = y.std(3, keepdim=True, correction=0).to(self.deviation)
            if not self.is_mapped:
                continue
            inputs, outputs = (flatten(part)[:, 0] for part in (x.float(), y))  # [layers, tokens, features]
            for layer, chosen in enumerate(best_sources(inputs, outputs, self.sources.shape[-1])):
                self.sources[layer, side] = chosen.to(self.sources)
                self.maps[layer, side] = ridge(inputs[chosen].transpose(0, 1).flatten(1), outputs[layer]).to(self.maps)

    def standardised(self, message: KV) -> KV:
        inverse = torch.where(self.deviation > 0, 1 / self.deviation, 0)  # what never changes says nothing
        return KV(*((part - self.mean[:, side]) * inverse[:, side] for side, part in enumerate(message)))

    def corrected(self, message: KV, residual: KV) -> KV:
        both = zip(message, residual, strict=True)
        return KV(*(part + self.deviation[:, side] * delta for side, (part, delta) in enumerate(both)))

    def summarise(self, cache: KV, spans: Tensor, extent: Extent | None = None) -> Summaries:
        most = require_spans(cache, spans, extent).tokens
        member = spans >= 0
        places = (~member).byte().argsort(dim=1, stable=True)[:, :most]
        layers, _, heads, _, size = cache.keys.shape
        index = places[None, :, None, :, None].expand(layers, -1, heads, -1, size)
        carried = KV(*(side.gather(3, index) for side in cache))
        if self.is_mapped:
            carried = KV(*(self._mapped(part, side) for side, part in enumerate(carried)))
        return Summaries(carried, member.gather(1, places))

    def _mapped(self, carried: Tensor, side: int) -> Tensor:
        """Keys (0) or values (1) of all sharer layers as those of the receiver's."""
        x = flatten(carried)[self.sources[:, side].long()]  # [layers, sources, batch, tokens, features]
        x = x.permute(0, 2, 3, 1, 4).flatten(3)
        maps = self.maps[:, side]
        mapped = torch.baddbmm(maps[:, :1], x.flatten(1, 2), maps[:, 1:]).unflatten(1, x.shape[1:3])
        return mapped.unflatten(-1, (-1, self.head_dim)).transpose(2, 3)
