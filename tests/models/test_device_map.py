"""Models that are larger than a card: their parts lie in several places, and an adapter notices none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.cli import main
from lcf_lightning.errors import ModelError
from lcf_lightning.models.cache import continue_from, extend, from_transformers, prefill, to_transformers
from lcf_lightning.models.continuation import Continuation
from lcf_lightning.models.decoding import generate
from lcf_lightning.models.families import following
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.models.rotary import Rotary
from lcf_lightning.selection import most_attended
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


def places(*names: str, layers: int = 3) -> dict[str, int | str]:
    """Where the parts of a Llama go: those named to the disk, the rest to the CPU."""
    parts = ["model.embed_tokens", *(f"model.layers.{layer}" for layer in range(layers)), "model.norm",
             "model.rotary_emb", "lm_head"]  # fmt: skip
    assert set(names) <= set(parts)
    return {part: "disk" if part in names else "cpu" for part in parts}


SPLIT = places("model.layers.1", "lm_head")


def said(frozen: FrozenModel) -> list[Tensor]:
    """What a model remembers, says and lets through, in all the ways that it is used."""
    model, device = frozen.model, frozen.device
    ids = (torch.arange(12, device=device) + 5).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    cache = prefill(model, ids, mask, largest=16)
    longer = extend(model, cache, ids[:, :2], mask[:, :2])
    rotary = Rotary(model)
    every = tuple(range(len(cache.keys)))
    delta = longer.read(every, rotary)
    delta.keys.requires_grad_(), delta.values.requires_grad_()
    edited = longer.edit(every, delta, rotary)
    losses = continue_from(model, edited, ids[:, :3], mask[:, :3]).likelihood(ids[:, 1:4]).losses
    gradients = torch.autograd.grad(losses.sum(), delta)
    sent = most_attended(model, cache, ids, torch.arange(6, device=device).expand(2, -1) // 2, 2, asking=2)
    return [*cache.keys, *cache.values, *longer.keys, *longer.values, losses, *gradients, sent]


@pytest.mark.parametrize("spread", [{"": "cpu"}, SPLIT, "auto"])
def test_a_model_in_pieces_says_what_it_says_whole(spec: Spec, spread: Any) -> None:
    whole, split = load_frozen(spec("llama")), load_frozen(replace(spec("llama"), device_map=spread))
    assert split.device == torch.device("cpu")
    if spread == SPLIT:
        assert {"meta", "cpu"} == {weight.device.type for weight in split.model.parameters()}
    for ours, theirs in zip(said(split), said(whole), strict=True):
        assert torch.equal(ours, theirs)
    ids = torch.arange(10)[None] + 5
    cache = prefill(whole.model, ids, torch.ones_like(ids, dtype=torch.bool))
    answers = [generate(model, cache, ids[:, :1], 4, static_size=16) for model in (whole, split)]
    assert torch.equal(*answers)
    assert split.fingerprint == whole.fingerprint
    assert not any(weight.requires_grad for weight in split.model.parameters())


def test_tied_weights_that_are_offloaded_count_once(tmp_path: Path, spec: Spec) -> None:
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    ))  # fmt: skip
    model.save_pretrained(tmp_path)
    load_frozen(spec("llama")).tokenizer.save_pretrained(tmp_path)
    whole, *others = (
        load_frozen(ModelSpec(str(tmp_path), device_map=spread)).fingerprint
        for spread in (None, {"": "disk"}, places("model.layers.0", layers=1))
    )
    assert others == [whole, whole]


def test_what_other_cards_hold_comes_and_goes(spec: Spec) -> None:
    """A device that there is everywhere stands for another card: ``meta``."""
    frozen, elsewhere = load_frozen(spec("llama")), torch.device("meta")
    ids = torch.arange(6)[None] + 5
    cache = prefill(frozen.model, ids, torch.ones_like(ids, dtype=torch.bool))
    past = to_transformers(frozen.model, cache)
    far = torch.zeros_like(cache.keys[0][:, :, :1], device=elsewhere)
    following(past)
    layer = past.layers[1]
    assert {tensor.device for tensor in layer.update(far, far)} == {elsewhere}  # a layer's part goes where it is
    assert (layer.keys.shape[2], past.layers[0].keys.device) == (7, ids.device)
    back = from_transformers(frozen.model, past, cache.mask.to(elsewhere))  # and all of it to where the mask is
    assert {tensor.device for tensor in (*back.keys, *back.values)} == {elsewhere}
    hidden = BaseModelOutput(last_hidden_state=torch.zeros(1, 1, 4))
    assert Continuation.of(frozen.model, hidden, elsewhere).said["last_hidden_state"].device == elsewhere


def test_a_fit_with_a_model_in_pieces_ends_with_the_same_adapter(spec: Spec, tmp_path: Path) -> None:
    adapters = []
    for spread in (None, SPLIT):
        pair = spec("qwen3"), replace(spec("llama"), device_map=spread)
        module = small_module(*pair)
        small_trainer(tmp_path, max_steps=2, limit_val_batches=1, num_sanity_val_steps=1).fit(
            module, datamodule=small_data(*pair)
        )
        adapters.append(module.adapter)
    assert adapters[0].config == adapters[1].config  # fingerprints too
    assert all(torch.equal(tensor, adapters[1].state_dict()[name]) for name, tensor in adapters[0].state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": "cuda"}, "device_map='cuda' of model 'm' must be one of auto, balanced, .*, a device for each"),
        ({"device_map": {}}, "device_map={} of model 'm' must name a device for each module, or be null"),
        ({"path": "m.gguf", "device_map": "auto"}, "of model 'm.gguf' must be null: a GGUF file is read whole"),
    ],
)
def test_a_device_map_that_cannot_be_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec(**{"path": "m", **settings})


def test_a_model_is_not_spread_by_each_of_several_processes(
    spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a fit and in an evaluation, before a weight is loaded."""
    pair = spec("qwen3"), replace(spec("llama"), device_map="auto")
    module: LCFModule = small_module(*pair)
    module.trainer = small_trainer(tmp_path, devices=2, strategy="ddp")
    with pytest.raises(ModelError, match="device_map='auto' of model .* must be null with 2 processes"):
        module.setup("fit")
    assert module._link is None
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--config", "configs/quickstart.yaml", "--trainer.devices", "2",
              "--model.sharer.device_map", "{'': cpu}"])  # fmt: skip
    assert ended.value.code == 2
    assert "device_map={'': 'cpu'} of model 'tiny-sharer' must be null with 2 processes" in capsys.readouterr().err


def test_a_model_begins_where_prompts_are(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenModel, "device", torch.device("cuda:1"))
    with pytest.raises(ModelError, match="begins on cuda:1; it must begin on cpu, where prompts, caches and the"):
        load_frozen(replace(spec("llama"), device_map="auto"))


def test_what_spreads_models_must_be_installed(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcf_lightning.models.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"device_map='auto' needs accelerate: pip install 'lcf-lightning\[quant\]'"):
        load_frozen(replace(spec("llama"), device_map="auto"))
