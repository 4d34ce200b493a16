"""The LCF fuser: one bottleneck for keys and values together."""

from __future__ import annotations

import torch
from torch import nn

from lcf_lightning.adapter.layers import LayerFFN, LayerLinear, flatten, joint_linear, weigh
from lcf_lightning.adapter.parts import Fuser, PartShape
from lcf_lightning.models.geometry import KV


class LCFFuser(Fuser):
    """The LCF fuser (LCF, arXiv 2605.22863): one bottleneck for keys and values together.

    ``z = FFN(FFN(W_down [S_K; S_V; R_K; R_V] + b))``, ``[z_K, z_V] = z``, ``Δ_i = W_up z_i + b``,
    ``α_i = sigmoid(linear(z))``, one per head and token.

    Args:
        shape: What it is built for; ``d`` is the bottleneck width, even.
    """

    alias = "lcf"
    label = "LCF"

    def __init__(self, shape: PartShape) -> None:
        super().__init__()
        layers, sharer, receiver, d = shape.layers, shape.sharer, shape.receiver, shape.d
        self.reads_receiver = not shape.prepends
        self.size = receiver.head_dim
        self.down = LayerLinear(layers, 2 * sharer.width + (2 * receiver.width if self.reads_receiver else 0), d)
        blocks = (LayerFFN(layers, d, 4 * d, shape.dropout, shape.norm_eps) for _ in range(2))
        self.blocks = nn.Sequential(*blocks)
        self.weights = nn.ModuleList(LayerLinear(layers, d, receiver.kv_heads) for _ in range(2))
        self.updates = nn.ModuleList(LayerLinear(layers, d // 2, receiver.width) for _ in range(2))

    @property
    def last_maps(self) -> tuple[LayerLinear, ...]:
        return tuple(self.updates)  # type: ignore[arg-type]

    def forward(self, sharer: KV, receiver: KV | None) -> KV:
        joint = joint_linear(self.down, flatten(*sharer), None if receiver is None else flatten(*receiver))
        z = self.blocks(joint.flatten(1, 2))
        alphas = (torch.sigmoid(weight(z)) for weight in self.weights)
        deltas = (update(part) for update, part in zip(self.updates, z.chunk(2, dim=-1), strict=True))
        batch = sharer.keys.shape[1]
        return KV(*(weigh(a, d, batch, self.size) for a, d in zip(alphas, deltas, strict=True)))
