"""The fusers against the formulas of LCF and C2C, written out plainly, one layer, example and token at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.fusers.c2c import C2CFuser, C2CPipeline
from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.adapter.layers import LayerFFN
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import RECEIVER, SHARER, random_kv, random_summaries

Build = Callable[..., CacheAdapter]


def rms_norm(z: Tensor, weight: Tensor) -> Tensor:
    return z / torch.sqrt(z.pow(2).mean(-1, keepdim=True) + torch.finfo(z.dtype).eps) * weight


def ffn(block: LayerFFN, layer: int, z: Tensor) -> Tensor:
    hidden = F.gelu(rms_norm(z, block.norm[layer, 0]) @ block.up.weight[layer])
    return z + hidden @ block.down.weight[layer]


def plain_lcf(fuser: LCFFuser, sharer: KV, receiver: KV) -> KV:
    layers, batch, heads, tokens, size = receiver.keys.shape
    out = KV(torch.zeros_like(receiver.keys), torch.zeros_like(receiver.values))
    for layer in range(layers):
        for b in range(batch):
            for t in range(tokens):
                x = torch.cat(
                    [sharer.keys[layer, b, :, t].flatten(), sharer.values[layer, b, :, t].flatten(),
                     receiver.keys[layer, b, :, t].flatten(), receiver.values[layer, b, :, t].flatten()]
                )  # fmt: skip
                z = x @ fuser.down.weight[layer] + fuser.down.bias[layer, 0]
                for block in fuser.blocks:
                    z = ffn(block, layer, z)
                for i, (part, target) in enumerate(zip(z.chunk(2), out, strict=True)):
                    alpha = torch.sigmoid(z @ fuser.weights[i].weight[layer] + fuser.weights[i].bias[layer, 0])
                    delta = part @ fuser.updates[i].weight[layer] + fuser.updates[i].bias[layer, 0]
                    target[layer, b, :, t] = alpha[:, None] * delta.view(heads, size)
    return out


def plain_c2c(pipeline: C2CPipeline, sharer: Tensor, receiver: Tensor) -> Tensor:
    layers, batch, heads, tokens, size = receiver.shape
    out = torch.zeros_like(receiver)
    for layer in range(layers):
        for b in range(batch):
            for t in range(tokens):
                x = torch.cat([sharer[layer, b, :, t].flatten(), receiver[layer, b, :, t].flatten()])
                z = ffn(pipeline.block, layer, x @ pipeline.down.weight[layer] + pipeline.down.bias[layer, 0])
                update = ffn(pipeline.update_block, layer, z)
                update = update @ pipeline.update.weight[layer] + pipeline.update.bias[layer, 0]
                weight = ffn(pipeline.weight_block, layer, z)
                weight = torch.sigmoid(weight @ pipeline.weight.weight[layer] + pipeline.weight.bias[layer, 0])
                out[layer, b, :, t] = weight[:, None] * update.view(heads, size)
    return out


@torch.no_grad()
def test_lcf_is_its_formula(adapter: Build) -> None:
    fuser = adapter(pooler=None).fuser
    sharer, receiver = random_kv(5, SHARER, 2, 3, seed=1), random_kv(5, RECEIVER, 2, 3, seed=2)
    assert isinstance(fuser, LCFFuser)
    expected = plain_lcf(fuser, sharer, receiver)
    for ours, plain in zip(fuser(sharer, receiver), expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
        assert plain.abs().max() > 0.01


@torch.no_grad()
def test_c2c_is_its_formula(adapter: Build) -> None:
    fuser = adapter(pooler=None, fuser="c2c").fuser
    sharer, receiver = random_kv(5, SHARER, 2, 3, seed=1), random_kv(5, RECEIVER, 2, 3, seed=2)
    assert isinstance(fuser, C2CFuser)
    fused = fuser(sharer, receiver)
    torch.testing.assert_close(fused.keys, plain_c2c(fuser.keys, sharer.keys, receiver.keys), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        fused.values, plain_c2c(fuser.values, sharer.values, receiver.values), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("fuser", ["lcf", "c2c"])
@torch.no_grad()
def test_a_message_of_one_token_is_broadcast(adapter: Build, fuser: str) -> None:
    module = adapter(fuser=fuser).fuser
    message, receiver = random_kv(5, SHARER, 2, 1, seed=1), random_kv(5, RECEIVER, 2, 4, seed=2)
    repeated = KV(*(tensor.expand(-1, -1, -1, 4, -1) for tensor in message))
    for once, spread in zip(module(message, receiver), module(repeated, receiver), strict=True):
        torch.testing.assert_close(once, spread, atol=1e-6, rtol=1e-5)
        assert once.shape == receiver.keys.shape


@pytest.mark.parametrize("fuser", ["lcf", "c2c"])
def test_layers_do_not_mix(adapter: Build, fuser: str) -> None:
    """Layer 2's output depends on layer 2's input and parameters alone."""
    module = adapter(fuser=fuser, pooler=None).fuser
    sharer, receiver = random_kv(5, SHARER, 1, 3, seed=1), random_kv(5, RECEIVER, 1, 3, seed=2)
    receiver.keys.requires_grad_(True)
    fused = module(sharer, receiver)
    (fused.keys[2].sum() + fused.values[2].sum()).backward()
    assert receiver.keys.grad is not None
    assert receiver.keys.grad.flatten(1).norm(dim=1).nonzero().flatten().tolist() == [2]
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).norm(dim=1).nonzero().flatten().tolist() == [2]


def test_dropout_acts_in_training_only(adapter: Build) -> None:
    module = adapter(dropout=0.5, pooler=None).fuser
    sharer, receiver = random_kv(5, SHARER, 1, 3, seed=1), random_kv(5, RECEIVER, 1, 3, seed=2)
    assert torch.equal(module(sharer, receiver).keys, module(sharer, receiver).keys)
    module.train()
    assert not torch.equal(module(sharer, receiver).keys, module(sharer, receiver).keys)


@pytest.mark.parametrize("settings", [{"fuser": "lcf"}, {"fuser": "c2c"}, {"fuser": "lcf", "pooler": "prefix"}])
def test_zero_init_starts_from_no_edit_and_learns(adapter: Build, settings: dict[str, str]) -> None:
    for zero in (True, False):
        module = adapter(zero_init=zero, **settings)
        edit = module(random_summaries(5, SHARER, 2, 1), None if module.prepends else random_kv(5, RECEIVER, 2, 3), 1.0)
        assert [bool(tensor.any()) for tensor in edit] == [not zero] * 2  # keys and values
        (edit.keys.sum() + edit.values.sum()).backward()
        for last in module.fuser.last_maps:
            assert all(parameter.grad is not None and parameter.grad.any() for parameter in last.parameters())
