"""A fit that starts from an adapter (``model.init_from``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.errors import SettingError
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


@pytest.mark.parametrize("pooler", ["span", "carry"])
def test_a_fit_can_start_from_an_adapter(spec: Spec, tmp_path: Path, pooler: str) -> None:
    """In half precision, too; what `fit` finds in closed form is not found again."""
    pair = spec("llama"), spec("qwen3")
    first = small_module(*pair, pooler=pooler)
    small_trainer(tmp_path).fit(first, datamodule=small_data(*pair))
    first.adapter.bfloat16().save_pretrained(tmp_path / "adapter")
    expected = {name: tensor.float() for name, tensor in first.adapter.state_dict().items()}
    settings = replace(first.adapter.config.settings, dropout=0.0, gate_init=0.5)
    second = LCFModule(*pair, settings, init_from=str(tmp_path / "adapter"))
    small_trainer(tmp_path, max_steps=0).fit(second, datamodule=small_data(*pair))
    assert second.adapter.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.adapter.state_dict().items())
    assert second.training_facts()["init_from"] == str(tmp_path / "adapter")
    small_trainer(tmp_path, max_steps=1).fit(second, datamodule=small_data(*pair))
    for name, buffer in second.adapter.named_buffers():
        assert torch.equal(buffer, expected[name])
    other = spec("llama"), spec("gemma3")
    module = LCFModule(*other, replace(settings, d=10), init_from=str(tmp_path / "adapter"))
    with pytest.raises(SettingError, match=r"init_from='.*' must be built as this adapter is: d, geometry of the rec"):
        small_trainer(tmp_path).fit(module, datamodule=small_data(*other))


def test_one_model_on_both_sides_is_another_carry(spec: Spec, tmp_path: Path) -> None:
    alike = small_module(spec("llama"), spec("llama"), pooler="carry").adapter
    alike.save_pretrained(tmp_path / "adapter")
    twin = ModelSpec(f"{spec('llama').path}/")
    module = LCFModule(twin, spec("llama"), alike.config.settings, init_from=str(tmp_path / "adapter"))
    with pytest.raises(SettingError, match="must be built as this adapter is: parameters differ"):
        small_trainer(tmp_path).fit(module, datamodule=small_data(twin, spec("llama")))
