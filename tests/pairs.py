"""Small runs on pairs of random models: what the tests of module, callbacks and channel share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from transformers import PreTrainedModel

from lcf_lightning import AdapterSettings, Channel, ContextMismatchDataModule, LCFModule, ModelSpec
from lcf_lightning.cli import COMMANDS
from lcf_lightning.cli.cache import CacheOptions
from lcf_lightning.cli.commands import LIGHTNING
from lcf_lightning.cli.config import config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.evaluate import EvaluateOptions
from lcf_lightning.cli.prune import PruneOptions
from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.models.cache import KVCache, prefill

OPTIONS = {"evaluate": EvaluateOptions, "prune": PruneOptions, "cache": CacheOptions}
ARMS = (
    "question_only", "own_context", "full_context", "full_context_form", "t2t_50", "t2t_50_form", "t2t_100",
    "t2t_100_form", "t2t_150", "t2t_150_form", "t2t_200", "t2t_200_form", "message", "mismatched", "other_text",
    "permuted", "zero", "self", "noise",
)  # fmt: skip
"""The arms of an evaluation that names none, where the two read different texts; then where they read the same."""
SHARED_ARMS = ("sharer_alone", "own_context", "message", "mismatched", "permuted", "zero", "noise")


def small_data(sharer: ModelSpec, receiver: ModelSpec, **settings: Any) -> ContextMismatchDataModule:
    """The embedded world in small, written for byte-level tokenizers."""
    world = World(sharer_facts=2, receiver_facts=1, train_size=64, validation_size=12, test_size=12)
    defaults = {
        "source": world,
        "batch_size": 4,
        "eval_batch_size": 5,
        "prompts": PromptSettings(question=" {question}"),
    }
    return ContextMismatchDataModule(sharer=sharer, receiver=receiver, **{**defaults, **settings})


def small_module(sharer: ModelSpec, receiver: ModelSpec, **settings: Any) -> LCFModule:
    """An adapter small enough to train in a second, with gates open and dropout on."""
    adapter = AdapterSettings(**{"d": 8, "dropout": 0.1, **settings})
    return LCFModule(sharer, receiver, adapter, warmup_steps=2)


def channel_of(module: LCFModule) -> Channel:
    """The channel of a module whose models are loaded."""
    return Channel(module.link.sharer, module.link.receiver, module.adapter)


def small_trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """A quiet CPU Trainer that writes below ``folder`` only."""
    defaults: dict[str, Any] = {
        "max_steps": 4, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})


def parse_only(arguments: list[str]) -> Namespace:
    """The settings of a command line, parsed as ``main`` would, with nothing built or run."""
    command, *rest = arguments
    if command not in LIGHTNING:
        return config_parser(COMMANDS[command], OPTIONS.get(command)).parse_args(with_bases(rest))

    class ParseOnly(LCFCLI):
        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    settings: Namespace = ParseOnly([command, *rest]).config[command]
    return settings


def prefills_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every prefill that a store makes from now on."""
    made: list[int] = []

    def counted(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> KVCache:
        made.append(len(ids))
        return prefill(model, ids, mask)

    monkeypatch.setattr("lcf_lightning.models.store.prefill", counted)
    return made
