from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lcf_lightning.callbacks import AdapterExport
from lightning.pytorch.demos.boring_classes import BoringModel

from lcf_lightning import CacheAdapter, ModelSpec
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


def test_the_folder_can_be_chosen_and_a_dry_run_writes_nothing(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    export = AdapterExport(str(tmp_path / "a" / "b"))
    small_trainer(tmp_path, export).fit(small_module(*pair), datamodule=small_data(*pair))
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    small_trainer(tmp_path, AdapterExport(), fast_dev_run=True).fit(small_module(*pair), datamodule=small_data(*pair))
    assert not (tmp_path / "adapter").exists()


def test_another_module_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[AdapterExport()],
    )  # fmt: skip
    with pytest.raises(SettingError, match="AdapterExport needs an LCFModule, not a BoringModel"):
        trainer.fit(BoringModel())
    assert not (tmp_path / "adapter").exists()
