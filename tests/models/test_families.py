"""A model that differs from the common family is one class, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM

from lcf_lightning import ModelSpec
from lcf_lightning.errors import ModelError
from lcf_lightning.models.families import Family, family_of
from lcf_lightning.models.families.family import _FAMILIES
from lcf_lightning.models.rotary import Rotary
from tests.conftest import byte_tokenizer
from tests.pairs import channel_of, small_module


@pytest.fixture
def cohere(tmp_path: Path) -> ModelSpec:
    """A model whose rotary embedding turns neighbouring dimensions, not halves."""
    tokenizer = byte_tokenizer(300)
    config = CohereConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    CohereForCausalLM(config).save_pretrained(tmp_path / "cohere")
    tokenizer.save_pretrained(tmp_path / "cohere")
    return ModelSpec(str(tmp_path / "cohere"))


@pytest.fixture
def neighbours() -> Iterator[type[Family]]:
    class Neighbours(Family):
        model_types = ("cohere",)

        def rotate_half(self, keys: Tensor) -> Tensor:
            even, odd = keys[..., ::2], keys[..., 1::2]
            return torch.stack([-odd, even], dim=-1).flatten(-2)

    yield Neighbours
    del _FAMILIES["cohere"]


def test_an_unknown_rotation_is_refused_and_a_family_of_its_own_reads_it(
    cohere: ModelSpec, spec: object, request: pytest.FixtureRequest
) -> None:
    assert callable(spec)
    module = small_module(spec("llama"), cohere, pooler="prefix")
    with pytest.raises(ModelError, match="CohereForCausalLM does not rotate keys as Family says"):
        module.configure_model()
    neighbours = request.getfixturevalue("neighbours")
    module.configure_model()
    receiver = module.link.receiver
    assert type(receiver.family) is neighbours
    assert type(family_of(module.link.sharer.config)) is Family
    channel = channel_of(module.eval())
    message = channel.send(["likes ada tea ."], "likes ada")
    assert channel.receive(message, "likes ada", max_new_tokens=2).new_tokens > 0
    keys, at = torch.randn(3, 1, 2, 5, 8), torch.arange(5)[None]
    rotary = Rotary(receiver.model)
    back = rotary.apply(rotary.apply(keys, (0, 1, 2), at), (0, 1, 2), at, inverse=True)
    torch.testing.assert_close(back, keys, atol=1e-5, rtol=1e-4)
