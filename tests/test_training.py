"""What training asks of a Trainer, and how answers weigh in its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from lcf_lightning import AdapterSettings, ContextMismatchDataModule, LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.data.sources.source import Split
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.caches import Reading
from lcf_lightning.evaluation.prediction import answer_losses
from lcf_lightning.training import require_trainer
from tests.pairs import small_data, small_trainer

Spec = Callable[[str], ModelSpec]


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies_that_divide_a_model_are_refused(kind: type) -> None:
    trainer: Any = SimpleNamespace(precision="32-true", strategy=kind.__new__(kind), max_epochs=1, max_steps=-1)
    with pytest.raises(SettingError, match=f"strategy={kind.__name__} must be ddp, or auto"):
        require_trainer(trainer, "fit")
    trainer.strategy = DDPStrategy()
    require_trainer(trainer, "fit")


def test_a_strategy_is_refused_before_a_model_is_loaded(spec: Spec, tmp_path: Path) -> None:
    module = plain_module(spec)
    module.trainer = small_trainer(tmp_path, strategy=ModelParallelStrategy())
    with pytest.raises(SettingError, match="strategy=ModelParallelStrategy must be ddp, or auto"):
        module.setup("fit")


class Endless(IterableDataset[Example]):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        while True:
            yield from self.examples


class Streamed(ContextMismatchDataModule):
    def train_dataloader(self) -> Any:
        assert self._collator is not None
        return DataLoader(Endless(self._examples["train"]), batch_size=4, collate_fn=self._collator.train)


def test_a_fit_without_epochs_needs_steps(spec: Spec, tmp_path: Path) -> None:
    pair = (spec("llama"), spec("qwen3"))
    module = plain_module(spec, temperature_end=0.5)
    trainer = small_trainer(tmp_path, max_epochs=-1, max_steps=3)
    trainer.fit(module, datamodule=small_data(*pair))
    assert trainer.global_step == 3
    assert module.temperature == 0.5  # the schedule has come to its end
    for limits in ({"max_epochs": -1, "max_steps": -1}, {"max_steps": -1, "max_time": "00:00:01:00"}):
        module = plain_module(spec)
        with pytest.raises(SettingError, match="max_steps=-1 must be above 0 where max_epochs=-1 bounds no steps"):
            small_trainer(tmp_path, **limits).fit(module, datamodule=small_data(*pair))
        assert module._link is None


def test_epochs_of_no_known_length_need_steps(spec: Spec, tmp_path: Path) -> None:
    """Else the learning rate would be 0, and the gates' temperature that of the end."""
    pair = (spec("llama"), spec("qwen3"))
    plain = small_data(*pair)
    data = Streamed(source=plain.source, sharer=pair[0], receiver=pair[1], prompts=plain.prompts)
    with pytest.raises(SettingError, match="max_steps=-1 must be above 0 where max_epochs=2 bounds no steps"):
        small_trainer(tmp_path, max_epochs=2, max_steps=-1).fit(plain_module(spec), datamodule=data)
    trainer = small_trainer(tmp_path, max_epochs=2, max_steps=2)
    trainer.fit(plain_module(spec), datamodule=data)
    assert trainer.global_step == 2


class Uneven(World):
    """Answers that are said once, twice or three times."""

    def examples(self, split: Split, seed: int) -> list[Example]:  # type: ignore[override]
        return [
            replace(row, answers=(" ".join(row.answers * (1 + place % 3)),))
            for place, row in enumerate(super().examples(split, seed))
        ]


def plain_module(spec: Spec, **settings: Any) -> LCFModule:
    """Nothing random in its steps, which are as long as its gradients."""
    adapter = AdapterSettings(d=8, dropout=0.0, gate_noise="none")
    optimizer = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1), "warmup_steps": 0}
    return LCFModule(spec("llama"), spec("qwen3"), adapter, **{**optimizer, **settings})


class Batches(pl.Callback):
    """Keeps what a fit is given."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
        self.seen.append(batch)


def step(spec: Spec, folder: Path, batch_size: int, accumulated: int, weighting: str) -> tuple[LCFModule, Any, Any]:
    """A module after a step, its parameters before, and the batches of that step."""
    module, batches = plain_module(spec, loss_weighting=weighting), Batches()
    before = copy.deepcopy(dict(module.adapter.named_parameters()))
    source = Uneven(sharer_facts=2, receiver_facts=1, train_size=64, validation_size=12, test_size=12)
    data = small_data(spec("llama"), spec("qwen3"), source=source, batch_size=batch_size)
    small_trainer(folder, batches, max_steps=1, accumulate_grad_batches=accumulated).fit(module, datamodule=data)
    return module, before, batches.seen


@pytest.mark.parametrize(
    ("weighting", "batch_size", "accumulated"), [("example", 6, 1), ("token", 6, 1), ("token", 3, 2)]
)
def test_a_step_goes_down_the_mean_over_all_its_examples_or_answer_tokens(
    spec: Spec, tmp_path: Path, weighting: str, batch_size: int, accumulated: int
) -> None:
    """Answers of a step are of several lengths, and so are the numbers of tokens of its accumulated batches."""
    module, before, batches = step(spec, tmp_path, batch_size, accumulated, weighting)
    moved = {name: (before[name] - after).detach() for name, after in module.adapter.named_parameters()}
    module.adapter.load_state_dict(before)
    module.adapter.train().zero_grad()
    summed, weights = torch.zeros(()), 0
    for batch in batches:
        message = module.link.pool(module.link.read_sharer(batch.sharer), batch.index)
        cache = module.link.fuse(module.link.read_receiver(batch.receiver), message, module.temperature_start)
        losses = answer_losses(module.link, Reading(cache, batch.last, batch.question), batch)
        for loss, row in zip(losses, batch.answer_mask, strict=True):
            weight = int(row.sum()) if weighting == "token" else 1
            summed, weights = summed + weight * loss, weights + weight
    assert len({int(row.sum()) for batch in batches for row in batch.answer_mask}) > 2
    (summed / weights).backward()
    for name, parameter in module.adapter.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(moved[name], 0.1 * parameter.grad, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_another_weighting_is_named(spec: Spec) -> None:
    with pytest.raises(SettingError, match="loss_weighting='word' must be one of example, token"):
        plain_module(spec, loss_weighting="word")
