"""What the optimizer shrinks, and that a fit of before goes on with the group that it had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lcf_lightning import ModelSpec
from lcf_lightning.optimizing import build_optimizer, default_optimizer
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


@pytest.mark.parametrize("fuser", ["lcf", "c2c"])
def test_weight_decay_is_for_matrices_alone(spec: Spec, fuser: str) -> None:
    adapter = small_module(spec("llama"), spec("qwen3"), fuser=fuser).adapter
    names = {id(parameter): name for name, parameter in adapter.named_parameters()}
    optimizer = build_optimizer(default_optimizer, adapter)
    decays, others = ([names.pop(id(each)) for each in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert not names
    assert all(name.endswith((".weight", "_query")) for name in decays)
    assert all(name.endswith((".bias", ".norm", "gates.logits")) for name in others)
    assert "gates.logits" in others


def test_where_nothing_decays_there_is_one_group(spec: Spec) -> None:
    adapter = small_module(spec("llama"), spec("qwen3")).adapter
    for make in (torch.optim.Adam, lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.0)):
        assert len(build_optimizer(make, adapter).param_groups) == 1
    assert len(build_optimizer(default_optimizer, adapter, groups=1).param_groups) == 1
    assert len(build_optimizer(torch.optim.Adam, adapter, groups=2).param_groups) == 2  # continued without decay


def test_a_fit_of_before_goes_on_with_its_one_group(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = spec("llama"), spec("qwen3")
    groups = []
    for before, steps in ((True, 2), (False, 3)):
        with monkeypatch.context() as patch:
            if before:
                patch.setattr("lcf_lightning.optimizing.is_matrix", lambda _: True)
            trainer = small_trainer(tmp_path, max_steps=steps)
            checkpoint = None if before else tmp_path / "before.ckpt"
            trainer.fit(small_module(*pair), datamodule=small_data(*pair), ckpt_path=checkpoint, weights_only=True)
            groups.append(len(trainer.optimizers[0].param_groups))
            trainer.save_checkpoint(tmp_path / "before.ckpt", weights_only=False)
            assert trainer.global_step == steps
    assert groups == [1, 1]
    fresh = small_trainer(tmp_path, max_steps=1)
    fresh.fit(small_module(*pair), datamodule=small_data(*pair))
    assert len(fresh.optimizers[0].param_groups) == 2
