"""A model's rotary embedding, taken off its cached keys and put on again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lcf_lightning import ModelSpec
from lcf_lightning.errors import ModelError
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.rotary import Rotary
from tests.models.conftest import left_padded, rows


def test_unrotated_keys_do_not_depend_on_position(frozen: FrozenModel) -> None:
    """A token alone has the same un-rotated keys anywhere, and other rotated ones."""
    rotary, layers = Rotary(frozen.model), tuple(range(frozen.geometry.layers))
    token, real = torch.tensor([[7]]), torch.ones(1, 1, dtype=torch.bool)
    caches = [prefill(frozen.model, token, real, positions=torch.tensor([[p]])) for p in (0, 100)]
    rotated = [torch.stack(cache.keys) for cache in caches]
    unrotated = [
        rotary.apply(keys, layers, torch.tensor([[p]]), inverse=True) for keys, p in zip(rotated, (0, 100), strict=True)
    ]
    torch.testing.assert_close(unrotated[0], unrotated[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(unrotated[0], rotated[0], atol=1e-6, rtol=1e-5)  # position 0 is not rotated
    assert not torch.allclose(rotated[0], rotated[1], atol=1e-2)


def test_rotating_undoes_unrotating(frozen: FrozenModel) -> None:
    cache, rotary = prefill(frozen.model, *left_padded(rows())), Rotary(frozen.model)
    layers = tuple(range(frozen.geometry.layers))
    keys = torch.stack(cache.keys)
    there = rotary.apply(keys, layers, cache.positions, inverse=True)
    torch.testing.assert_close(rotary.apply(there, layers, cache.positions), keys, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(there, keys, atol=1e-2)


def test_scaled_rotary_embeddings_are_inverted(spec: Callable[[str], ModelSpec]) -> None:
    """YaRN multiplies cos and sin; the inverse must divide by the square."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rope_parameters=yarn,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rotary = Rotary(model)  # checks itself
    keys = torch.randn(2, 1, 2, 5, 8)
    positions = torch.arange(5)[None]
    back = rotary.apply(rotary.apply(keys, (0, 1), positions), (0, 1), positions, inverse=True)
    assert model.model.rotary_emb.attention_scaling != 1.0
    torch.testing.assert_close(back, keys, atol=1e-5, rtol=1e-4)


def test_models_that_rotate_otherwise_are_refused() -> None:
    from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    interleaved = CohereForCausalLM(CohereConfig(vocab_size=300, num_key_value_heads=4, **small)).eval()
    with pytest.raises(ModelError, match="does not rotate keys as Family says.*set unrotate_keys to false"):
        Rotary(interleaved)
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=4)).eval()
    with pytest.raises(ModelError, match="no rotary module; set unrotate_keys to false"):
        Rotary(learned)
