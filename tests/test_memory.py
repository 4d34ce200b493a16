"""What the paper's runs hold in memory, at their own widths: the targets of docs/scale.md."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lcf_lightning import AdapterSettings, LCFModule, ModelSpec
from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.errors import SettingError
from lcf_lightning.models.geometry import KV
from tests.pairs import small_data, small_module, small_trainer

ROOT = Path(__file__).parents[1]
GIGABYTE = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))


def of(memory: dict[str, Any], *arguments: str) -> FitConfig:
    return FitConfig(config_parser(memory["COMMAND"]).parse_args(with_bases(["--config", *arguments])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ("qwen_openhermes_lcf128", 16),
        ("qwen_openhermes_lcf256", 16),
        ("qwen_openhermes_c2c", 40),
        ("qwen3_hotpotqa_lcfx", 12),
    ],
)
def test_a_paper_s_run_keeps_within_its_limit(memory: dict[str, Any], config: str, limit: int) -> None:
    """Micro-batches of 4 × 2,048 tokens, of which answers have up to 1,024 (OpenHermes), of 8 × 900 and 32 (HotpotQA);
    besides the models' weights, which are frozen, and with the adapter's gradients and moments."""
    found = memory["measure"](of(memory, str(ROOT / "configs" / f"{config}.yaml")), prompt=900, answer=32)
    assert found.kept < found.training
    assert found.adapter + found.training <= limit * GIGABYTE
    assert found.validation <= found.training


def test_what_is_counted_is_what_lives(memory: dict[str, Any]) -> None:
    """Once a storage, however many tensors show it, and as long as it lives."""
    live = memory["Live"](spans=5)
    with memory["FakeTensorMode"](), live:
        one = torch.zeros(1000)
        shown = one.view(10, 100).transpose(0, 1)
        assert live.bytes == live.most == 4000
        two = shown + 1
        del one, shown
        assert (live.bytes, live.most) == (4000, 8000)
        assert bool((two > 0).all())
        assert int(torch.ones(3, dtype=torch.long).max()) == 4
        kept = memory["Kept"](set())
        weight = torch.zeros(100, 10, requires_grad=True)
        with kept:
            (weight * two).exp()
        assert kept.bytes == 2 * 4000  # the factor whose gradient nobody wants, and what exp gave


class Blockless(LCFFuser):
    """A fuser of somebody else's, without the blocks of this package."""

    def __init__(self, shape: Any) -> None:
        super().__init__(shape)
        self.blocks = nn.Sequential()


def test_a_fuser_without_blocks_has_none_to_compute_twice() -> None:
    settings = AdapterSettings(fuser=f"{Blockless.__module__}.Blockless")
    with pytest.raises(SettingError, match="activation_checkpointing=true must be false with fuser='.*Blockless'"):
        LCFModule(ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver"), settings, activation_checkpointing=True)


@pytest.mark.parametrize("fuser", ["lcf", "c2c"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_blocks_that_are_computed_twice_keep_less_and_change_nothing(fuser: str, precision: torch.dtype) -> None:
    """The same numbers with the same gate noise and dropout, to the bit."""
    found: list[tuple[int, Tensor, list[Tensor]]] = []
    for twice in (False, True):
        torch.manual_seed(0)
        settings = AdapterSettings(fuser=fuser, d=32, pooler=None, dropout=0.5)
        module = LCFModule(
            ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver"), settings, activation_checkpointing=twice
        )
        sharer, receiver = (
            KV(*torch.randn(2, geometry.layers, 2, geometry.kv_heads, 9, geometry.head_dim).unbind())
            for geometry in (module.adapter.config.message, module.adapter.config.receiver.geometry)
        )
        message = Summaries(sharer, torch.ones(2, 9, dtype=torch.bool))
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with (
            torch.autocast("cpu", precision, enabled=precision != torch.float32),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            delta = module.adapter(message, receiver, temperature=1.0)
        loss = sum(side.square().sum() for side in delta)
        gradients = torch.autograd.grad(loss, list(module.adapter.fuser.parameters()))
        found.append((sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), loss, list(gradients)))
    (once, loss, gradients), (twice_kept, same, others) = found
    assert torch.equal(loss, same)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, others, strict=True))
    assert twice_kept < 0.75 * once


def test_a_fit_that_computes_blocks_twice_ends_with_the_same_adapter(
    spec: Callable[[str], ModelSpec], tmp_path: Path
) -> None:
    pair, adapters = (spec("llama"), spec("qwen3")), []
    for twice in (False, True):
        settings = small_module(*pair).adapter.config.settings
        module = LCFModule(*pair, settings, activation_checkpointing=twice)
        small_trainer(tmp_path, max_steps=3).fit(module, datamodule=small_data(*pair))
        adapters.append(module.adapter.state_dict())
    assert settings.dropout > 0
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
