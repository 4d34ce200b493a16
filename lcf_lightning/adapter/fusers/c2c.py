"""The fuser of Cache-to-Cache, the baseline: separate pipelines for keys and values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lcf_lightning.adapter.layers import LayerFFN, LayerLinear, flatten, joint_linear, weigh
from lcf_lightning.adapter.parts import Fuser, PartShape
from lcf_lightning.models.geometry import KV


class C2CPipeline(nn.Module):
    """One of the C2C fuser's two pipelines: for keys or for values.

    Args:
        shape: What it is built for.
        reads_receiver: Whether the receiver's cache is read too.
    """

    def __init__(self, shape: PartShape, reads_receiver: bool) -> None:
        super().__init__()
        layers, sharer, receiver, hidden = shape.layers, shape.sharer, shape.receiver, shape.d
        self.size = receiver.head_dim
        self.down = LayerLinear(layers, sharer.width + (receiver.width if reads_receiver else 0), hidden)
        block = partial(LayerFFN, layers, hidden, hidden, shape.dropout, shape.norm_eps)
        self.block = block()
        self.update_block = block()
        self.update = LayerLinear(layers, hidden, receiver.width)
        self.weight_block = block()
        self.weight = LayerLinear(layers, hidden, receiver.kv_heads)

    def forward(self, sharer: Tensor, receiver: Tensor | None) -> Tensor:
        joint = joint_linear(self.down, flatten(sharer), None if receiver is None else flatten(receiver))
        z = self.block(joint.flatten(1, 2))
        alpha = torch.sigmoid(self.weight(self.weight_block(z)))
        return weigh(alpha, self.update(self.update_block(z)), sharer.shape[1], self.size)


class C2CFuser(Fuser):
    """The Cache-to-Cache fuser (C2C, arXiv 2510.03215): separate pipelines for keys and values.

    Args:
        shape: What it is built for; ``d`` is the hidden width (1024 in the C2C paper).
    """

    alias = "c2c"
    label = "C2C"

    def __init__(self, shape: PartShape) -> None:
        super().__init__()
        self.reads_receiver = not shape.prepends
        self.keys = C2CPipeline(shape, self.reads_receiver)
        self.values = C2CPipeline(shape, self.reads_receiver)

    @property
    def last_maps(self) -> tuple[LayerLinear, ...]:
        return (self.keys.update, self.values.update)

    def forward(self, sharer: KV, receiver: KV | None) -> KV:
        keys, values = (None, None) if receiver is None else receiver
        return KV(self.keys(sharer.keys, keys), self.values(sharer.values, values))
