"""`CommunicationAccuracy`: does the message help, and would any other message have helped as much?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import require_arms
from lcf_lightning.evaluation.prediction import Prediction, run_arms
from lcf_lightning.evaluation.ranks import gathered
from lcf_lightning.evaluation.report import Summary, summarise
from lcf_lightning.evaluation.verdict import Verdict, judge
from lcf_lightning.module import LCFModule


class CommunicationAccuracy(pl.Callback):
    """Logs loss, exact match and F1 of every arm at the end of validation and test.

    Communication accuracy is the receiver's exact match on questions that need the sharer; the arm ``mismatched``, in
    which the receiver gets another example's message, tells communication from mere tuning. Metrics are named
    ``val/message/exact_match`` and so on; on questions the receiver can answer alone, ``val/own_questions/message/…``.
    Open-ended questions (chats) have a loss only.
    Works on what `LCFModule`'s steps return, so that no prefill is made twice. Under DDP every example counts once,
    whatever the sampler pads, and all ranks log the same figures.

    Args:
        arms: Arms of a validation: any of ``question_only``, ``own_context``, ``full_context``, ``full_context_form``,
            ``t2t_N``, ``t2t_N_form``, ``message``, ``message_int8``, ``message_int4``, ``mismatched``, ``other_text``,
            ``permuted``, ``zero``, ``self``, ``noise``, ``sharer_alone``, or the class path of an `Arm` of your own.
        test_arms: Arms of a test; null for those and ``full_context``, or, where both models read the same text,
            ``sharer_alone``.
        max_new_tokens: Longest answer, in receiver tokens; null for the module's.
        max_batches: Validation batches to answer, per rank; null for all. A test always answers all.

    Raises:
        SettingError: If an arm is unknown or a number is below 1.
    """

    def __init__(
        self,
        arms: Sequence[str] = ("own_context", "message", "mismatched"),
        test_arms: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        max_batches: int | None = None,
    ) -> None:
        arms = require_arms(arms)
        test_arms = None if test_arms is None else require_arms(test_arms, "test_arms")
        for name, value in (("max_new_tokens", max_new_tokens), ("max_batches", max_batches)):
            if value is not None and value < 1:
                raise SettingError(f"{name}={value} must be at least 1.")
        self.arms, self.test_arms = arms, test_arms
        self.max_new_tokens, self.max_batches = max_new_tokens, max_batches
        self.summary: Summary | None = None
        self.verdict: Verdict | None = None  # of a test
        self._answers: list[Prediction] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._answers = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self.max_batches is None or batch_idx < self.max_batches:
            self._answer(pl_module, outputs, self.arms)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        shared = required_module(pl_module, self).link.shared
        reference = "sharer_alone" if shared else "full_context"
        self._answer(pl_module, outputs, self.test_arms or ("own_context", "message", "mismatched", reference))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(pl_module, "test")

    def _answer(self, module: pl.LightningModule, outputs: Any, arms: Sequence[str]) -> None:
        limit = self.max_new_tokens or required_module(module, self).max_new_tokens
        self._answers += run_arms(outputs["caches"], arms, limit)

    def _log(self, module: pl.LightningModule, stage: str) -> None:
        answers = gathered(self._answers)
        self.summary = summarise(answers)
        self.verdict = judge(answers) if stage == "test" else None
        groups = {stage: self.summary["arms"], f"{stage}/own_questions": self.summary["own_questions"]}
        for prefix, arms in groups.items():
            for arm, figures in arms.items():
                scores = {"exact_match": figures["exact_match"], "f1": figures["f1"], "loss": figures["loss"]}
                logged = {f"{prefix}/{arm}/{name}": score for name, score in scores.items() if score is not None}
                module.log_dict(logged, sync_dist=True)


def required_module(module: pl.LightningModule, callback: pl.Callback) -> LCFModule:
    """``module``, if it is an LCFModule; else a SettingError."""
    if not isinstance(module, LCFModule):
        raise SettingError(f"{type(callback).__name__} needs an LCFModule, not a {type(module).__name__}.")
    return module
