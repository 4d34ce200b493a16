"""`LCFModule`: the training step around two frozen models and an adapter."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings, ModelIdentity
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import ContextMismatchDataModule, PairDataModule, SharedContextDataModule
from lcf_lightning.errors import AdapterFileError, DivergedError, ModelError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.prediction import answer_losses, run_arms
from lcf_lightning.fitting import FITTING_TEXTS, differing_settings, fit_pooler, start_from
from lcf_lightning.host import HostCopy
from lcf_lightning.hyperparameters import hyperparameters
from lcf_lightning.link import Link, identity_of, load_pair
from lcf_lightning.loggers import is_logged
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.models.store import PrefillSettings
from lcf_lightning.optimizing import after_validation, build_optimizer, default_optimizer, names_of, scheduled, set_rate
from lcf_lightning.training import TokenMean, hub_ids, require_trainer, seeded, total_steps
from lcf_lightning.writer import Writer

_RANKS_APART = 0x9E3779B9  # of seeds, whose lower 32 bits count on a CPU: far apart there, whatever the steps


class LCFModule(pl.LightningModule):
    """Trains the adapter between two frozen models (LCF and LCF-X, arXiv 2605.22863; C2C, arXiv 2510.03215).

    The adapter is built at once, from the models' configs alone; the models are loaded when a Trainer starts. They are
    kept outside the module tree: only the adapter is in ``state_dict``, checkpoint and optimizer.

    Args:
        sharer: The model that has read something.
        receiver: The model that answers.
        adapter: What to train.
        optimizer: From parameters to an optimizer.
        warmup_steps: Steps of linear warm-up, or, below 1, the fraction of all steps (the paper: 0.1).
        temperature_start: Gate temperature at the first step.
        temperature_end: Gate temperature at the last step; annealed exponentially over the run's own length.
        max_new_tokens: Longest answer, in receiver tokens.
        seed: Decides initial weights and gate noise.
        prefills: Where both models' prefills are kept, so that later epochs and runs make none; null for nowhere.
        init_from: An adapter folder, or ``owner/name`` on the hub, whose parameters a fit starts from: to go on with
            other data, say. Refused as the fit starts if it is built otherwise. Null for random ones.
        loss_weighting: ``example``: the training loss is the mean over examples of each answer's mean over its tokens.
            ``token``: the mean over all answer tokens of an optimizer step, of every rank and accumulated batch. Losses
            of validation and test are means over examples.
        lr_scheduler: From the optimizer to what changes its learning rate, step by step (a plateau's after each
            validation), in place of the warm-up and the linear decay to 0 after it; ``warmup_steps`` is not used then.
        activation_checkpointing: Whether a training step computes the fuser's blocks twice, to keep less of them in
            memory. Losses and gradients are the same.

    Raises:
        SettingError: If a setting is out of range.
        ModelError: If a model's config cannot be found.
        GeometryError: If it describes no usable decoder.
    """

    def __init__(
        self,
        sharer: ModelSpec,
        receiver: ModelSpec,
        adapter: AdapterSettings = AdapterSettings(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: float = 0.1,
        temperature_start: float = 1.0,
        temperature_end: float = 0.1,
        max_new_tokens: int = 16,
        seed: int = 42,
        prefills: PrefillSettings | None = None,
        init_from: str | None = None,
        loss_weighting: str = "example",
        activation_checkpointing: bool = False,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise SettingError(f"warmup_steps={warmup_steps} must be at least 0.")
        if not 0 < temperature_end <= temperature_start:
            raise SettingError(
                f"temperature_end={temperature_end} must be above 0 and at most temperature_start={temperature_start}."
            )
        self.sharer, self.receiver = sharer, receiver
        self.optimizer, self.lr_scheduler, self.warmup_steps = optimizer, lr_scheduler, warmup_steps
        self.lr: float | None = None  # what `LearningRateFinder` finds, in place of the optimizer's own
        self.max_new_tokens, self.seed, self.prefills, self.init_from = max_new_tokens, seed, prefills, init_from
        self.temperature_start, self.temperature_end = temperature_start, temperature_end
        adapter.import_parts()
        config = AdapterConfig(identity_of(sharer), identity_of(receiver), adapter)
        with seeded(seed):
            self.adapter = CacheAdapter(config)
        if activation_checkpointing:
            self.adapter.recompute_blocks()
        self.strict_loading = False  # the frozen models are in no checkpoint; `on_load_checkpoint` checks the adapter
        # Metrics, since Lightning's own mean over ranks rounds an odd number of examples down.
        self.val_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self._token_mean = TokenMean.of(loss_weighting)
        self.save_hyperparameters(hyperparameters({
            "sharer": sharer, "receiver": receiver, "adapter": adapter, "warmup_steps": warmup_steps,
            "temperature_start": temperature_start, "temperature_end": temperature_end, "seed": seed,
            "max_new_tokens": max_new_tokens, "init_from": init_from, "loss_weighting": loss_weighting,
            "activation_checkpointing": activation_checkpointing, **names_of(optimizer, lr_scheduler, self.adapter),
        }))  # fmt: skip
        self._link: Link | None = None
        self._groups: int | None = None  # of the optimizer whose state a checkpoint holds
        self._scored: tuple[list[str], int, HostCopy]  # ids, dropped spans and loss of the last batch, not looked at

    @property
    def link(self) -> Link:
        """Both frozen models and the adapter, once a Trainer has started."""
        if self._link is None:
            raise SettingError("the frozen models are not loaded yet; call configure_model() or start a Trainer.")
        return self._link

    @cached_property
    def writer(self) -> Writer:
        """Prompts for both models, once a Trainer has started."""
        return Writer.of(self.link)

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before a weight is loaded."""
        require_trainer(self.trainer, stage)
        for spec in (self.sharer, self.receiver):
            spec.require_alone(self.trainer.world_size)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ContextMismatchDataModule) and self.adapter.pooler is None:
            raise SettingError("pooler=null must name a pooler, such as span, where the two read different texts.")
        if isinstance(data, SharedContextDataModule) and self.adapter.pooler is not None:
            raise SettingError(
                f"pooler={self.adapter.config.settings.pooler!r} must be null where both models read the same text."
            )
        pooler, fresh = self.adapter.pooler, self.trainer.ckpt_path is None
        if stage == "fit" and fresh and self.init_from is not None:
            start_from(self.adapter, self.init_from)
        if stage == "fit" and fresh and pooler is not None and pooler.unfitted and not isinstance(data, PairDataModule):
            raise SettingError(
                f"pooler={self.adapter.config.settings.pooler!r} starts from texts that both models read, which only a "
                "PairDataModule knows; give fit one as its datamodule, or the checkpoint of a fit that had one."
            )

    def configure_model(self) -> None:
        """Load the frozen models on this process's device."""
        if self._link is None:
            device = self._trainer.strategy.root_device if self._trainer is not None else self.device
            sharer, receiver = load_pair(self.sharer, self.receiver, device)
            self.adapter.config = replace(
                self.adapter.config,
                sharer=_identified(self.adapter.config.sharer, sharer),
                receiver=_identified(self.adapter.config.receiver, receiver),
            )
            self._link = Link(sharer, receiver, self.adapter, self.prefills)

    def on_fit_start(self) -> None:
        """Give the adapter what of it has a closed form, unless a checkpoint has given it."""
        pooler = self.adapter.pooler
        if pooler is None or not pooler.unfitted:
            return
        if self.trainer.is_global_zero:
            fit_pooler(self.link, self.trainer.datamodule.read_by_both(FITTING_TEXTS))  # type: ignore[attr-defined]
        for tensor in pooler.buffers():
            tensor.copy_(self.trainer.strategy.broadcast(tensor))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Noise is a function of seed, step and rank: a resumed run draws what an undisturbed one would.
        drawn = self.seed + 1 + self.global_step * 1_000 + batch_idx % 1_000 + self.global_rank * _RANKS_APART
        with seeded(drawn, self.device):
            message = self.link.pool(self.link.read_sharer(batch.sharer), batch.index, batch.extent)
            cache = self.link.fuse(self.link.read_receiver(batch.receiver), message, self.temperature, batch.question)
            losses = answer_losses(self.link, Reading(cache, batch.last, batch.question), batch)
        loss = goal = losses.mean()
        if self._token_mean is not None:
            tokens = batch.answer_mask.sum(1)
            goal = self._token_mean.sum(losses, tokens)
            loss = goal / tokens.sum()
        self._scored = batch.ids, batch.dropped_spans, HostCopy(loss)
        return goal

    def on_after_backward(self) -> None:
        """Refuse a loss that is not finite, and a receiver that lets no gradient through, which would train nothing.

        Raises:
            DivergedError: If the loss is not finite.
            ModelError: If a parameter of the adapter has got no gradient.
        """
        ids, dropped, copy = self._scored
        loss = copy.read()  # the device has the backward pass to do meanwhile
        if not math.isfinite(loss.numpy()):
            raise DivergedError(f"loss={loss.numpy()} at step {self.global_step}, on the batch of ids {ids}.")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(ids))
        if is_logged(self.trainer):
            self.log("train/temperature", torch.tensor(self.temperature), batch_size=len(ids))
            self.log("train/dropped_spans", torch.tensor(float(dropped)), batch_size=len(ids))
        without = [name for name, p in self.adapter.named_parameters() if p.requires_grad and p.grad is None]
        if without:
            raise ModelError(
                f"no gradient reaches {len(without)} tensors of the adapter, {without[0]} among them, through the "
                f"receiver {self.receiver.path!r} (quantization={self.receiver.quantization!r})."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._token_mean is not None:
            self._token_mean.rescale(self.adapter.parameters(), self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, ArmCaches]:
        """Logs ``val/loss``; returns the batch's ``caches``, so that callbacks need no second prefill."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, ArmCaches]:
        """Logs ``test/loss``; returns the batch's ``caches``, so that callbacks need no second prefill."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Answers of the message arm, as JSON-ready data."""
        with torch.autocast(self.device.type, enabled=False):
            answers = run_arms(ArmCaches(self.link, self.writer, batch), ["message"], self.max_new_tokens)
        return [asdict(answer) for answer in answers]

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, ArmCaches]:
        caches = ArmCaches(self.link, self.writer, batch)
        losses = self.val_loss if stage == "val" else self.test_loss
        with torch.autocast(self.device.type, enabled=False):  # as `evaluate` and `Channel` use the adapter
            losses.update(answer_losses(self.link, caches.message, batch))
        self.log(f"{stage}/loss", losses, prog_bar=True, batch_size=len(batch))
        dropped = float(batch.dropped_spans)
        self.log(f"{stage}/dropped_spans", dropped, on_epoch=True, reduce_fx="sum", sync_dist=True, batch_size=1)
        return {"caches": caches}

    @property
    def temperature(self) -> float:
        """The gates' temperature at this step."""
        progress = min(1.0, self.global_step / max(1, total_steps(self.trainer) - 1))
        return float(self.temperature_start * (self.temperature_end / self.temperature_start) ** progress)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.adapter, groups=self._groups)
        schedule = scheduled(optimizer, self.lr_scheduler, self.warmup_steps, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Have the schedule scale what `LearningRateFinder` has found, which gives it to the next step alone."""
        if self.lr is not None:
            for schedule in self.trainer.lr_scheduler_configs:
                set_rate(schedule.scheduler, self.lr)

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            after_validation(self.trainer)

    def training_facts(self) -> dict[str, Any]:
        """What travels with the adapter, JSON-ready: steps, seed, source, and how prompts were written."""
        facts: dict[str, Any] = {"steps": self.trainer.global_step, "seed": self.seed}
        if self.init_from is not None:
            facts["init_from"] = self.init_from
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, PairDataModule):
            facts |= {"source": str(data.source), "datasets": hub_ids(data.source), "prompts": asdict(data.prompts)}
        return facts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["adapter_config"] = replace(self.adapter.config, metadata=self.training_facts()).to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another adapter, since Lightning will not."""
        stored, trained = AdapterConfig.from_dict(checkpoint.get("adapter_config", {})), self.adapter.config
        differing = [
            role for role in ("sharer", "receiver") if not getattr(stored, role).same(getattr(trained, role))
        ] + differing_settings(stored, trained)
        if differing:
            raise AdapterFileError(f"checkpoint belongs to another adapter: {', '.join(differing)} differ.")
        ours, theirs = ({name: tensor.shape for name, tensor in state.items()}
                        for state in (self.state_dict(), checkpoint["state_dict"]))  # fmt: skip
        if ours != theirs:
            raise AdapterFileError("checkpoint does not hold exactly the adapter's tensors.")
        states = checkpoint.get("optimizer_states")
        self._groups = len(states[0]["param_groups"]) if states else None


def _identified(identity: ModelIdentity, model: FrozenModel) -> ModelIdentity:
    """With the model's fingerprint, unless its weights are quantised, which another device may round otherwise."""
    return identity if model.spec.quantization else replace(identity, fingerprint=model.fingerprint)
