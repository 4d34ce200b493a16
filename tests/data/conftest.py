"""Data modules of the embedded world, and one rank of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tokenizers import decoders
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcf_lightning import ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import ContextMismatchDataModule, ResumableLoader
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.sources import Source, World
from lcf_lightning.data.sources.source import Split


@pytest.fixture
def make(spec: Callable[[str], ModelSpec]) -> Make:
    """From settings to a datamodule of a small world that is set up, with the trainer of one process."""

    def made(
        stage: str = "fit", pair: tuple[str, str] = ("llama", "qwen3"), **changes: Any
    ) -> ContextMismatchDataModule:
        given = {"source": World(**SIZES), "batch_size": 4, "eval_batch_size": 3, **changes}
        module = ContextMismatchDataModule(sharer=spec(pair[0]), receiver=spec(pair[1]), **given)
        module.setup(stage)
        return on_rank(module, 0, 1)

    return made


def on_rank(module: ContextMismatchDataModule, rank: int, ranks: int) -> ContextMismatchDataModule:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loops = {"fit_loop": trainer.fit_loop}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, strategy=strategy, **loops)  # type: ignore[assignment]
    return module


def epoch_of(loader: ResumableLoader, epoch: int) -> Iterable[Batch]:
    """One epoch's batches, as Lightning asks for them."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return iter(loader)


def ids_of(batches: Iterable[Batch]) -> list[list[str]]:
    return [batch.ids for batch in batches]


class Listed(Source):
    """Examples as given, the same for every split."""

    def __init__(self, *examples: Example) -> None:
        self.listed = examples

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        return self.listed


PASSAGES = (("Mary moved.", " She sat down."), ("John ran.",), ("The cat, the dog.", " Both slept.", " All night."))


QUESTION = "Where is Mary?"


@pytest.fixture(scope="session")
def tokenizer(model_folders: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer, able to put bytes together again."""
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def encoder(tokenizer: PreTrainedTokenizerBase, **changes: object) -> PromptEncoder:
    return PromptEncoder(tokenizer, PromptSettings(**changes), "max_sharer_tokens")  # type: ignore[arg-type]


Make = Callable[..., ContextMismatchDataModule]


SIZES = {"train_size": 24, "validation_size": 7, "test_size": 5}
