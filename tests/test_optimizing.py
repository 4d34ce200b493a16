"""What the optimizer shrinks, how fast it learns, and that a fit of before goes on with the group that it had."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau

from lcf_lightning import AdapterSettings, LCFModule, ModelSpec
from lcf_lightning.errors import SettingError
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


def test_a_scheduler_of_ones_own_takes_every_step(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    halved = LCFModule(*pair, AdapterSettings(d=8), lr_scheduler=lambda it: torch.optim.lr_scheduler.StepLR(it, 1, 0.5))
    trainer = small_trainer(tmp_path, max_steps=3)
    trainer.fit(halved, datamodule=small_data(*pair))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-4 / 8] * 2
    assert halved.hparams["lr_scheduler"] == "StepLR"
    assert halved.hparams["optimizer/lr"] == 1e-4


def test_a_plateau_is_looked_for_after_each_validation(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an epoch is shorter than the interval."""
    pair, seen = (spec("llama"), spec("qwen3")), []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, value: seen.append(value))
    data = small_data(*pair)
    for monitor, expected in (("val/loss", 2), ("val/none", 0)):
        module = LCFModule(*pair, AdapterSettings(d=8), lr_scheduler=partial(ReduceLROnPlateau, monitor=monitor))
        options = {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None, "limit_train_batches": 2}
        options["limit_val_batches"] = 1
        trainer = small_trainer(tmp_path / monitor, **options)
        if not expected:
            with pytest.raises(SettingError, match="monitor='val/none' of lr_scheduler must be one of"):
                trainer.fit(module, datamodule=data)
            continue
        trainer.fit(module, datamodule=data)
        assert len(seen) == expected
        assert seen[-1] == pytest.approx(float(trainer.callback_metrics["val/loss"]))


def test_the_learning_rate_that_lightning_finds_is_what_the_schedule_scales(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    module, plain = small_module(*pair), small_module(*pair)
    finder = LearningRateFinder(num_training_steps=30, max_lr=0.1, early_stop_threshold=None)
    trainer = small_trainer(tmp_path, finder, max_steps=4)
    trainer.fit(module, datamodule=small_data(*pair))
    assert module.lr == finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    (schedule,) = trainer.lr_scheduler_configs
    assert schedule.scheduler.base_lrs == [module.lr] * 2
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0  # the decay has ended

    rate = module.lr
    plain.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    small_trainer(tmp_path / "plain").fit(plain, datamodule=small_data(*pair))
    for name, tensor in plain.adapter.state_dict().items():  # as one that has had this rate from the beginning
        assert torch.equal(tensor, module.adapter.state_dict()[name]), name
