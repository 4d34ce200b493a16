"""`Speedup`: how much sooner the receiver answers than if the sharer wrote it a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lcf_lightning.callbacks.accuracy import required_module

from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.latency import batches_of_one, measure


class Speedup(pl.Callback):
    """Logs ``speedup/ttft_vs_t2t_N`` at the end of validation and test.

    That is the time to the first token where the sharer writes up to N tokens of text, over that of the message: the
    median over repeats, batch 1, both prefills in both. Rank 0 measures, all ranks log its figure.

    Args:
        budgets: N of each T2T-N to compare with.
        repeats: Measurements, each on the next of the first batch's examples.
        warmup: Measurements thrown away before.

    Raises:
        SettingError: If a number is out of range.
    """

    def __init__(self, budgets: Sequence[int] = (50,), repeats: int = 5, warmup: int = 1) -> None:
        if not budgets or min(budgets) < 1:
            raise SettingError(f"budgets={list(budgets)} must be one or more numbers of tokens, each at least 1.")
        if repeats < 1 or warmup < 0:
            raise SettingError(f"repeats={repeats} and warmup={warmup} must be at least 1 and 0.")
        self.budgets, self.repeats, self.warmup = tuple(budgets), repeats, warmup
        self.ratios: dict[str, float] = {}
        self._batch: Batch | None = None
        self._static_cache: bool | None = None  # how this device writes faster, once that is known

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if batch_idx == 0:
            self._batch = batch

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self._batch is None:
            return
        batch, self._batch = self._batch, None
        ratios = self._measure(pl_module, batch) if trainer.is_global_zero else {}
        self.ratios = trainer.strategy.broadcast(ratios)
        pl_module.log_dict(self.ratios, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def _measure(self, pl_module: pl.LightningModule, batch: Batch) -> dict[str, float]:
        module = required_module(pl_module, self)
        singles = batches_of_one(module.link, module.writer, batch.prompts, batch.examples[: self.repeats])
        arms = [f"t2t_{budget}" for budget in self.budgets]
        latency = measure(
            module.link, module.writer, singles, arms, module.max_new_tokens, self.repeats, self.warmup,
            self._static_cache,
        )  # fmt: skip
        if latency["writing"] is not None:
            self._static_cache = latency["writing"]["cache"] == "static"
        return {f"speedup/ttft_vs_t2t_{budget}": ratio["median"] for budget, ratio in latency["ttft_vs_t2t"].items()}
