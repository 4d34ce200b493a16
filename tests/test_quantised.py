"""Frozen models in 8 bits and in nf4: the adapter trains through them and communicates nearly as well."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lcf_lightning import CacheAdapter, Channel, ModelSpec
from lcf_lightning.cli import main
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.models.loading import FrozenModel
from tests.pairs import small_data, small_module, small_trainer
from tests.test_cli import CONFIGS, QUICK

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'lcf-lightning[quant]'")

# How weights are held, their size against fp32's (embeddings stay), how near gradients and exact match stay.
QUANTIZATIONS = {"8bit": (torch.int8, 0.30, 0.99, 0.03), "nf4": (torch.uint8, 0.17, 0.70, 0.08)}
PROMPTS = PromptSettings(context="{passages} ", separator=" ", question="question {question} ?")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
Frozen = tuple[FrozenModel, FrozenModel]


class FirstGradient(pl.Callback):
    """The adapter's gradient at the first step, before any weight has changed."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == 0:
            parameters = pl_module.adapter.named_parameters()  # type: ignore[union-attr, operator]
            self.of = {name: p.grad.detach().cpu().clone() for name, p in parameters if p.grad is not None}

    @property
    def flat(self) -> Tensor:
        return torch.cat([gradient.flatten() for gradient in self.of.values()])


def three_steps(folder: Path, quantization: str | None, device: str) -> tuple[FirstGradient, Frozen]:
    """Trains three steps, through every parameter of the adapter and changing no frozen weight."""
    sharer, receiver = (ModelSpec(f"tiny-{role}", quantization=quantization) for role in ("sharer", "receiver"))
    module, first = small_module(sharer, receiver), FirstGradient()
    trainer = small_trainer(folder, first, max_steps=3, accelerator=device)
    module.trainer = trainer  # it names the device
    module.configure_model()
    frozen = module.link.sharer, module.link.receiver
    before = [copy.deepcopy(held.model.state_dict()) for held in frozen]
    trainer.fit(module, datamodule=small_data(sharer, receiver, batch_size=64, prompts=PROMPTS))
    for held, weights in zip(frozen, before, strict=True):
        after = held.model.state_dict()
        assert after.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in after.items())
        assert all(parameter.grad is None for parameter in held.model.parameters())
    assert first.of.keys() == {name for name, _ in module.adapter.named_parameters()}
    return first, frozen


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_adapter_learns_through_quantised_models(quantization: str, device: str, tmp_path: Path) -> None:
    """Every gradient is there and points where fp32's does; the frozen weights are small and stay as they are.

    The tiny receiver is 96 wide and nf4 has a scale for every 64 weights, so blocks run across rows.
    """
    dtype, size, cosine, _ = QUANTIZATIONS[quantization]
    plain, full = three_steps(tmp_path, None, device)
    quantised, frozen = three_steps(tmp_path, quantization, device)
    assert torch.isfinite(quantised.flat).all()
    assert (quantised.flat != 0).float().mean() > 0.99
    assert F.cosine_similarity(quantised.flat, plain.flat, dim=0) > cosine
    for held, large in zip(frozen, full, strict=True):
        assert held.model.get_memory_footprint() < size * large.model.get_memory_footprint()
        for layer in held.model.model.layers:
            assert {layer.self_attn.q_proj.weight.dtype, layer.mlp.down_proj.weight.dtype} == {dtype}
            assert layer.self_attn.q_proj.weight.device.type == device


def test_the_config_and_the_command_line_quantise(tmp_path: Path) -> None:
    """The adapter folder names how its models were held, and a channel made from it holds them so again."""
    run, config = tmp_path / "run", tmp_path / "quantised.yaml"
    config.write_text("model: {sharer: {quantization: 8bit}}\n")
    main([
        "fit", *QUICK, "--config", str(config), "--model.receiver.quantization", "nf4", "--trainer.max_steps", "2",
        "--trainer.default_root_dir", str(run),
    ])  # fmt: skip
    stored = json.loads((run / "adapter" / "lcf_config.json").read_text())
    assert [stored[role]["quantization"] for role in ("sharer", "receiver")] == ["8bit", "nf4"]
    channel = Channel.from_pretrained(run / "adapter")
    projections = [held.model.model.layers[0].self_attn.q_proj for held in (channel.link.sharer, channel.link.receiver)]
    assert [type(projection).__name__ for projection in projections] == ["Linear8bitLt", "Linear4bit"]
    message = channel.send(["likes ada tea .", "owns bob lamp ."], "likes ada")
    assert message.keys.isfinite().all()
    assert channel.receive(message, "likes ada", ["finds eva bell ."]).new_tokens >= 1
    assert CacheAdapter.from_pretrained(run / "adapter").config == channel.adapter.config


def exact_match(run: Path) -> dict[str, float]:
    """Of every arm of a run, on unseen questions that need the sharer."""
    arms = json.loads((run / "summary.json").read_text())["arms"]
    assert {figures["n"] for figures in arms.values()} == {752}
    return {arm: figures["exact_match"] for arm, figures in arms.items()}


def held_in(quantization: str) -> list[str]:
    """Both models quantised, on the command line."""
    return [f"--model.{role}.quantization={quantization}" for role in ("sharer", "receiver")]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_adapter_of_full_precision_serves_quantised_models(
    quantization: str, quickstart: Path, tmp_path: Path
) -> None:
    main([
        "evaluate", "--config", str(CONFIGS / "quickstart.yaml"), *held_in(quantization),
        "--adapter", str(quickstart / "adapter"),
        "--output", str(tmp_path), "--arms", "[own_context,message,mismatched]", "--repeats", "0",
        "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())["arms"]
    arms = {arm: figures["exact_match"]["value"] for arm, figures in report.items()}
    assert {figures["n"] for figures in report.values()} == {752}
    assert arms["message"] > exact_match(quickstart)["message"] - QUANTIZATIONS[quantization][3]
    assert max(arms["own_context"], arms["mismatched"]) < 0.10


@pytest.mark.slow
def test_an_adapter_trained_between_nf4_models_communicates(tmp_path: Path) -> None:
    """After a third of the quickstart's steps; all of them (docs/scale.md) end within a point of fp32."""
    main([
        "fit", "--config", str(CONFIGS / "quickstart.yaml"), "--trainer.default_root_dir", str(tmp_path),
        *held_in("nf4"), "--trainer.max_steps", "400", "--trainer.limit_val_batches", "0",
        "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    arms = exact_match(tmp_path)
    assert arms["message"] > 0.5
    assert max(arms["own_context"], arms["mismatched"]) < 0.10
