"""What is said as an answer is read: losses of parts of it are the losses of the whole, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lcf_lightning.models import continuation
from lcf_lightning.models.cache import (
    KVCache,
    continue_from,
    extend,
    forward,
    positions_of,
    prefill,
    to_transformers,
)
from lcf_lightning.models.continuation import Continuation
from lcf_lightning.selection import attention_paid

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 0.05, "query_pre_attn_scalar": 8},
    "gemma3_text": {"final_logit_softcapping": 0.05, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
}  # fmt: skip
"""Softcapped, scaled, tied, with experts; of the last the decoder stands deeper, so that its logits are made whole."""


def small_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **MODELS[kind]})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def read(model: PreTrainedModel, tokens: int = 7) -> tuple[KVCache, Tensor, Tensor, Tensor]:
    """A cache whose first layer's values want a gradient; what is read on it, what is to be said, and its mask."""
    ids = torch.randint(3, 60, (3, 5))
    cache = prefill(model, ids, torch.ones_like(ids, dtype=torch.bool))
    values = (cache.values[0].clone().requires_grad_(), *cache.values[1:])
    answers = torch.randint(3, 60, (3, tokens))
    mask = torch.arange(tokens) < torch.tensor([[tokens], [2], [1]])
    more = torch.cat([ids[:, -1:], answers[:, :-1]], dim=1)
    return KVCache(cache.keys, values, cache.mask), more, answers, mask


def plain(model: PreTrainedModel, cache: KVCache, more: Tensor, mask: Tensor) -> Tensor:
    """All logits by the model's own ``forward``, in one call."""
    full = torch.cat([cache.mask, mask], dim=1)
    positions = positions_of(full)[:, cache.mask.shape[1] :]
    logits: Tensor = forward(model, to_transformers(model, cache), more, full, positions).logits
    return logits


@pytest.mark.parametrize("kind", MODELS)
def test_parts_have_the_loss_and_the_gradient_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By single tokens, twos with one over, threes with one over, and all at once."""
    model = small_model(kind)
    cache, more, answers, mask = read(model)
    logits = plain(model, cache, more, mask)
    losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view_as(answers)
    expected = torch.autograd.grad((losses * mask).sum(), cache.values[0])[0]
    assert expected.abs().max() > 1e-6
    for at_once in (1, 3 * 60 * 2, 3 * 60 * 3, 2**26):
        monkeypatch.setattr(continuation, "LOGITS_AT_ONCE", at_once)
        likelihood = continue_from(model, cache, more, mask).likelihood(answers)
        found = torch.autograd.grad((likelihood.losses * mask).sum(), cache.values[0])[0]
        assert likelihood.losses.dtype == torch.float32
        torch.testing.assert_close(likelihood.losses, losses, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(likelihood.greedy, logits.argmax(-1) == answers)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_of_a_place_are_those_of_the_whole(kind: str) -> None:
    model = small_model(kind)
    assert (Continuation.reader(model) is model) == (kind == "opt")
    weights = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    cache, more, _, mask = read(model)
    with torch.no_grad():
        whole = plain(model, cache, more, mask)
        said = continue_from(model, cache, more, mask)
        torch.testing.assert_close(said.logits(), whole, atol=0, rtol=0)
        torch.testing.assert_close(said.logits(2, 4), whole[:, 2:4], atol=1e-6, rtol=1e-6)
    cap = MODELS[kind].get("final_logit_softcapping")
    assert cap is None or whole.abs().max() < cap < model.get_output_embeddings()(said.said[0]).abs().max()
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == weights
    assert type(getattr(model, model.base_model_prefix)).__name__ != "_Said"  # the model itself is as it was


def saved_bytes(run: Callable[[], Any], apart: nn.Module) -> tuple[int, Any]:
    """Bytes that a run keeps for its backward pass, each storage once, without those of a module's weights."""
    known = {parameter.untyped_storage().data_ptr() for parameter in apart.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor  # alive, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), result


def test_no_logits_are_kept_where_there_are_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    cache, more, answers, mask = read(model, tokens=40)
    said = continue_from(model, cache, more, mask)
    whole, _ = saved_bytes(lambda: said.likelihood(answers), model)
    assert whole >= answers.numel() * 60 * 4
    monkeypatch.setattr(continuation, "LOGITS_AT_ONCE", 3 * 60 * 8)
    parts, _ = saved_bytes(lambda: said.likelihood(answers), model)
    assert parts <= answers.numel() * (32 * 4 + 8)  # the hidden states and the answers


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def test_the_head_is_left_out_where_nobody_asks_what_is_said(kind: str) -> None:
    model, seen = small_model(kind), []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call))
    cache, more, _, mask = read(model)
    extend(model, cache, more, mask)
    attention_paid(model, prefill(model, more[:1], mask[:1]), more[:1], torch.arange(7)[None] > 3)
    assert not seen


def test_the_head_reads_a_part_of_the_tokens_in_one_piece() -> None:
    """Else torch copies the weights of the head for every example: in bfloat16 on a CPU 300 times as slow."""
    model, strided = small_model("llama"), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: strided.append(not args[0].is_contiguous()))
    cache, more, _, mask = read(model)
    continue_from(model, cache, more, mask).logits(1, 3)
    assert strided == [False]
