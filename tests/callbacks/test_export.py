from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lcf_lightning.callbacks import AdapterExport
from lightning.pytorch.demos.boring_classes import BoringModel

from lcf_lightning import CacheAdapter, ModelSpec
from lcf_lightning.adapter.folder import read_config
from lcf_lightning.cli.export import read_adapter
from lcf_lightning.errors import SettingError
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


def test_the_adapter_of_the_last_step_is_written(spec: Spec, tmp_path: Path) -> None:
    module = small_module(spec("llama"), spec("qwen3"))
    data = small_data(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=data)
    restored = CacheAdapter.from_pretrained(tmp_path / "adapter")
    for name, tensor in module.adapter.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])
    assert restored.config.metadata["steps"] == 4
    assert restored.config.metadata["seed"] == 42
    assert restored.config.metadata["prompts"]["question"] == " {question}"


class Mine(AdapterExport):
    """A user's own."""


def test_the_licence_is_in_the_checkpoint_that_is_exported(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    trainer = small_trainer(tmp_path, Mine(license="mit"))
    trainer.fit(small_module(*pair), datamodule=small_data(*pair))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for metadata in (read_adapter(tmp_path / "a.ckpt").config.metadata, read_config(tmp_path / "adapter")[0].metadata):
        assert metadata["license"] == "mit"


def test_the_folder_can_be_chosen_and_a_dry_run_writes_nothing(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    export = AdapterExport(str(tmp_path / "a" / "b"))
    small_trainer(tmp_path, export).fit(small_module(*pair), datamodule=small_data(*pair))
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "README.md",
        "lcf_adapter.safetensors",
        "lcf_config.json",
    ]
    small_trainer(tmp_path, AdapterExport(), fast_dev_run=True).fit(small_module(*pair), datamodule=small_data(*pair))
    assert not (tmp_path / "adapter").exists()


def fit_with_losses(spec: Spec, folder: Path, losses: list[float], **settings: object) -> AdapterExport:
    """A fit whose validations give these losses, after every step."""
    pair = spec("llama"), spec("qwen3")
    module, given = small_module(*pair), iter(losses)

    class Scripted(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.log("quality", next(given))

    export = AdapterExport(monitor="quality", **settings)  # type: ignore[arg-type]
    trainer = small_trainer(
        folder, Scripted(), export, max_steps=len(losses), limit_val_batches=1, val_check_interval=1
    )
    trainer.fit(module, datamodule=small_data(*pair))
    return export


@pytest.mark.parametrize(("mode", "step", "best"), [("min", 3, 1.0), ("max", 2, 4.0)])
def test_the_best_validation_is_kept_beside_the_last(
    spec: Spec, tmp_path: Path, mode: str, step: int, best: float
) -> None:
    export = fit_with_losses(spec, tmp_path, [3.0, 4.0, 1.0, 2.0], mode=mode)
    kept, last = (CacheAdapter.from_pretrained(tmp_path / name) for name in ("adapter_best", "adapter"))
    assert (kept.config.metadata["steps"], kept.config.metadata["quality"]) == (step, best)
    assert last.config.metadata["steps"] == 4
    assert export.best == best
    assert not torch.equal(kept.gates.logits, last.gates.logits)
    assert kept.config.metadata["prompts"]["question"] == " {question}"


def test_what_is_not_finite_is_never_best(spec: Spec, tmp_path: Path) -> None:
    export = fit_with_losses(spec, tmp_path, [float("nan"), 2.0, 3.0])
    assert export.best == 2.0
    assert CacheAdapter.from_pretrained(tmp_path / "adapter_best").config.metadata["steps"] == 2


def test_the_best_of_a_resumed_run_must_beat_what_was_before(spec: Spec, tmp_path: Path) -> None:
    resumed = AdapterExport()
    resumed.load_state_dict(fit_with_losses(spec, tmp_path, [1.0, 2.0]).state_dict())
    assert resumed.best == 1.0
    assert AdapterExport().best is None


def test_without_a_metric_only_the_last_is_written(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    settings = {"limit_val_batches": 1, "val_check_interval": 2}
    small_trainer(tmp_path, AdapterExport(monitor=None), **settings).fit(
        small_module(*pair), datamodule=small_data(*pair)
    )
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
    with pytest.raises(SettingError, match=r"monitor='accuracy' of AdapterExport must be one of .*val/loss"):
        small_trainer(tmp_path, AdapterExport(monitor="accuracy"), **settings).fit(
            small_module(*pair), datamodule=small_data(*pair)
        )
    with pytest.raises(SettingError, match="mode='best' must be min or max"):
        AdapterExport(mode="best")


def test_another_module_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[AdapterExport()],
    )  # fmt: skip
    with pytest.raises(SettingError, match="AdapterExport needs an LCFModule, not a BoringModel"):
        trainer.fit(BoringModel())
    assert not (tmp_path / "adapter").exists()
