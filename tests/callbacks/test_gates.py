from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import GateMonitor
from lcf_lightning.callbacks.gates import gates_figure
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcf_lightning import ModelSpec
from lcf_lightning.errors import SettingError
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


def test_open_gates_and_their_picture_are_logged(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair)
    with torch.no_grad():
        module.adapter.gates.logits[:3, 0] = -5.0  # three of four key gates are shut
    loggers = [TensorBoardLogger(tmp_path, "", version="tb"), CSVLogger(tmp_path, "", version="csv")]
    trainer = small_trainer(tmp_path, GateMonitor(every_n_steps=2), logger=loggers, max_steps=5, log_every_n_steps=1)
    trainer.fit(module, datamodule=small_data(*pair))
    stored = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in stored.Images("gates/by_layer")] == [2, 4, 5]
    assert {event.value for event in stored.Scalars("gates/open_keys")} == {1.0}
    assert {event.value for event in stored.Scalars("gates/open_values")} == {4.0}
    assert len(stored.Scalars("gates/open_keys")) == 5
    assert stored.Images("gates/by_layer")[0].encoded_image_string.startswith(b"\x89PNG")


def test_it_works_without_any_logger(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    trainer = small_trainer(tmp_path, GateMonitor(every_n_steps=1), max_steps=2, log_every_n_steps=1)
    trainer.fit(small_module(*pair), datamodule=small_data(*pair))
    assert trainer.callback_metrics["gates/open_keys"] == 4
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_every_gate() -> None:
    figure = gates_figure(torch.tensor([[0.0, 2.0], [-3.0, 1.0], [4.0, -1.0]]))
    (axes,) = figure.axes
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights == pytest.approx(torch.sigmoid(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0, 4.0])).tolist())
    assert (axes.get_xlabel() != "", axes.get_ylabel()) == (True, "σ(gate logit)")
    assert isinstance(figure, Figure)


def test_bad_settings_and_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="every_n_steps=0 must be at least 1"):
        GateMonitor(every_n_steps=0)
    with pytest.raises(SettingError, match="GateMonitor needs an LCFModule, not a BoringModel"):
        small_trainer(tmp_path, GateMonitor()).fit(BoringModel())
