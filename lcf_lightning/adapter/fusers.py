"""Fusers: what a message adds to a receiver's cache, or puts before it.

Every fuser computes all its layers in batched products, and takes the same inputs and gives the same output:

    sharer    KV  [layers, batch, sharer heads, tokens or 1, sharer head size]
    receiver  KV  [layers, batch, receiver heads, tokens, receiver head size]; None if only the sharer is read
    → KV          [layers, batch, receiver heads, tokens, receiver head size], the residual ``α ⊙ Δ`` before the gates
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lcf_lightning.adapter.layers import LayerFFN, LayerLinear, flatten
from lcf_lightning.models.geometry import KV, Geometry


class LCFFuser(nn.Module):
    """The LCF fuser (method.md §2; LCF, arXiv 2605.22863): one bottleneck for keys and values together.

    ``z = FFN(FFN(W_down [S_K; S_V; R_K; R_V] + b))``, ``[z_K, z_V] = z``, ``Δ_i = W_up z_i + b``,
    ``α_i = sigmoid(linear(z))``, one per head and token.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry.
        d: Bottleneck width, even.
        dropout: Dropout of the FFN blocks.
        reads_receiver: Whether the receiver's cache is read too.
    """

    def __init__(
        self,
        layers: int,
        sharer: Geometry,
        receiver: Geometry,
        d: int,
        dropout: float = 0.0,
        reads_receiver: bool = True,
    ) -> None:
        super().__init__()
        self.size = receiver.head_dim
        self.down = LayerLinear(layers, 2 * sharer.width + (2 * receiver.width if reads_receiver else 0), d)
        self.blocks = nn.Sequential(*(LayerFFN(layers, d, 4 * d, dropout) for _ in range(2)))
        self.weights = nn.ModuleList(LayerLinear(layers, d, receiver.kv_heads) for _ in range(2))
        self.updates = nn.ModuleList(LayerLinear(layers, d // 2, receiver.width) for _ in range(2))

    @property
    def last_maps(self) -> tuple[LayerLinear, ...]:
        """The maps that write Δ, of keys and of values."""
        return tuple(self.updates)  # type: ignore[arg-type]

    def forward(self, sharer: KV, receiver: KV | None) -> KV:
        shared, own = flatten(*sharer), None if receiver is None else flatten(*receiver)
        z = self.blocks(_joint_linear(self.down, shared, own).flatten(1, 2))
        alphas = (torch.sigmoid(weight(z)) for weight in self.weights)
        deltas = (update(part) for update, part in zip(self.updates, z.chunk(2, dim=-1), strict=True))
        batch = sharer.keys.shape[1]
        return KV(*(_weigh(a, d, batch, self.size) for a, d in zip(alphas, deltas, strict=True)))


class C2CPipeline(nn.Module):
    """One of the C2C fuser's two pipelines: for keys or for values.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry.
        hidden: Hidden width.
        dropout: Dropout of the FFN blocks.
        reads_receiver: Whether the receiver's cache is read too.
    """

    def __init__(
        self, layers: int, sharer: Geometry, receiver: Geometry, hidden: int, dropout: float, reads_receiver: bool
    ) -> None:
        super().__init__()
        self.size = receiver.head_dim
        self.down = LayerLinear(layers, sharer.width + (receiver.width if reads_receiver else 0), hidden)
        self.block = LayerFFN(layers, hidden, hidden, dropout)
        self.update_block = LayerFFN(layers, hidden, hidden, dropout)
        self.update = LayerLinear(layers, hidden, receiver.width)
        self.weight_block = LayerFFN(layers, hidden, hidden, dropout)
        self.weight = LayerLinear(layers, hidden, receiver.kv_heads)

    def forward(self, sharer: Tensor, receiver: Tensor | None) -> Tensor:
        joint = _joint_linear(self.down, flatten(sharer), None if receiver is None else flatten(receiver))
        z = self.block(joint.flatten(1, 2))
        alpha = torch.sigmoid(self.weight(self.weight_block(z)))
        return _weigh(alpha, self.update(self.update_block(z)), sharer.shape[1], self.size)


class C2CFuser(nn.Module):
    """The Cache-to-Cache fuser (method.md §3; C2C, arXiv 2510.03215): separate pipelines for keys and values.

    Args:
        layers: Number of edited layers.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry.
        d: Hidden width (1024 in the C2C paper).
        dropout: Dropout of the FFN blocks.
        reads_receiver: Whether the receiver's cache is read too.
    """

    def __init__(
        self,
        layers: int,
        sharer: Geometry,
        receiver: Geometry,
        d: int,
        dropout: float = 0.0,
        reads_receiver: bool = True,
    ) -> None:
        super().__init__()
        self.keys = C2CPipeline(layers, sharer, receiver, d, dropout, reads_receiver)
        self.values = C2CPipeline(layers, sharer, receiver, d, dropout, reads_receiver)

    @property
    def last_maps(self) -> tuple[LayerLinear, ...]:
        """The maps that write Δ, of keys and of values."""
        return (self.keys.update, self.values.update)

    def forward(self, sharer: KV, receiver: KV | None) -> KV:
        keys, values = (None, None) if receiver is None else receiver
        return KV(self.keys(sharer.keys, keys), self.values(sharer.values, values))


FUSERS: dict[str, type[LCFFuser] | type[C2CFuser]] = {"lcf": LCFFuser, "c2c": C2CFuser}


def _joint_linear(linear: LayerLinear, sharer: Tensor, receiver: Tensor | None) -> Tensor:
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


def _weigh(alpha: Tensor, delta: Tensor, batch: int, size: int) -> Tensor:
    """``α ⊙ Δ`` as ``[layers, batch, heads, tokens, head size]`` from ``[layers, batch·tokens, …]``."""
    weighted = alpha.unsqueeze(-1) * delta.unflatten(-1, (-1, size))
    return weighted.unflatten(1, (batch, -1)).transpose(2, 3)
