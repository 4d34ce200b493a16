"""DataModules: examples to batches, in an order that a resumed run continues."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.batch import Batch, Collator, SharedCollator
from lcf_lightning.data.example import Example
from lcf_lightning.data.loader import ResumableLoader, ResumableSampler
from lcf_lightning.data.partition import mismatched_partners, shared_text
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sample import sample
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.models.spec import ModelSpec, load_tokenizer


class PairDataModule(pl.LightningDataModule):
    """Examples for two models; what both data modules have in common.

    Args:
        source: Where examples come from; it decides who reads what.
        sharer: The sharer; linked to ``model.sharer`` on the command line.
        receiver: The receiver; linked to ``model.receiver`` on the command line.
        batch_size: Examples per training step and data-parallel rank.
        eval_batch_size: Examples per evaluation step and data-parallel rank.
        prompts: How examples become prompts.
        seed: Decides the splits, who reads what, the training order and the mismatched partners.
        num_workers: Processes that encode batches; 0 encodes in the training process.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        sharer: ModelSpec,
        receiver: ModelSpec,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        prompts: PromptSettings = PromptSettings(),  # noqa: B008 - frozen
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise SettingError(f"{name}={value} must be at least 1.")
        if num_workers < 0:
            raise SettingError(f"num_workers={num_workers} must be at least 0.")
        self.source, self.sharer, self.receiver = source, sharer, receiver
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.prompts, self.seed, self.num_workers = prompts, seed, num_workers
        self._examples: dict[Split, Sequence[Example]] = {}
        self._collator: Collator | None = None

    @abstractmethod
    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        """What writes the prompts."""

    def _read(self, split: Split, collator: Collator) -> Sequence[Example]:
        """The examples of a split."""
        return self.source.examples(split, self.seed)

    def _partners(self, examples: Sequence[Example], collator: Collator) -> list[int]:
        """For every example the one whose message is the wrong one for it."""
        return mismatched_partners(examples, [collator.sharer_tokens(example) for example in examples], self.seed)

    def setup(self, stage: str) -> None:
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)
        }  # fmt: skip
        if self._collator is None:
            self._collator = self._make_collator(load_tokenizer(self.sharer), load_tokenizer(self.receiver))
        for split in splits[stage]:
            if split not in self._examples:
                examples = self._read(split, self._collator)
                if split != "train":
                    _require_ids(examples, split)
                self._examples[split] = examples

    def train_dataloader(self) -> ResumableLoader:
        assert self._collator is not None, "setup() runs first"
        assert self.trainer is not None, "a Trainer asks for the training loader"
        count, ranks = len(self._examples["train"]), self.trainer.world_size
        if count // ranks < self.batch_size:
            raise DataError(
                f"batch_size={self.batch_size} is more than train split gives: {count} examples on {ranks} processes."
            )
        sampler = ResumableSampler(
            self._examples["train"],  # type: ignore[arg-type]
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
            seed=self.seed,
            drop_last=True,
        )
        loader = ResumableLoader(
            self._examples["train"],  # type: ignore[arg-type]
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=True,
            collate_fn=self._collator.train,
            **self._loading,
        )
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        loader.done = lambda: progress.current.ready
        return loader

    @property
    def _loading(self) -> dict[str, Any]:
        """How batches are made: by processes that stay, in memory that a CUDA device reads from by itself."""
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0, "pin_memory": on_cuda}

    def state_dict(self) -> dict[str, Any]:
        """How many examples the ranks take at once, by which a place in an epoch is counted."""
        assert self.trainer is not None, "a Trainer saves this"
        return {"examples": self.batch_size * self.trainer.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to continue a fit with batches of another size, which would skip examples or repeat them.

        Raises:
            SettingError: If batch size times processes is not what it was.
        """
        assert self.trainer is not None, "a Trainer restores this"
        own = self.batch_size * self.trainer.world_size
        if self.trainer.state.fn == TrainerFn.FITTING and own != state["examples"]:
            raise SettingError(
                f"batch_size={self.batch_size} on {self.trainer.world_size} processes gives {own} examples at once; "
                f"to continue this fit it must be {state['examples']}, as it was."
            )

    def val_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("test")

    def read_by_both(self, texts: int) -> Iterator[Batch]:
        """What the sharer reads of up to ``texts`` training examples, as both models would read it, one by one."""
        assert self._collator is not None, "setup() runs first"
        settings = replace(self.prompts, sharers=1, reread=None, send_tokens=None)
        collator = SharedCollator.of(settings, self._collator.sharer.tokenizer, self._collator.receiver.tokenizer)
        train = self._examples["train"]
        for place in range(min(texts, len(train))):
            example = train[place]
            yield collator.train([replace(example, shared=example.sharer_reads, sharer=(), receiver=())])

    def size(self, split: Split) -> int:
        """How many examples a split has that has been set up."""
        return len(self._examples[split])

    def evaluation_loader(self, split: Split, limit: int | None = None, by_length: bool = False) -> DataLoader[Any]:
        """Batches of ``limit`` examples of a split, a sample by the seed (null for all); see `sample`.

        Those of validation and test come with the examples whose messages are wrong for them, chosen from the whole
        split whatever the limit; those of the training split as a fit reads them. ``by_length`` puts examples of like
        length together, so that little is padding; else they keep their order. Under DDP every example is on one rank:
        none is repeated so that all have equally many.

        Raises:
            DataError: If there are fewer examples than ranks, or no wrong message in a benchmark.
        """
        assert self._collator is not None, "setup() runs first"
        examples = list(self._examples[split])
        places = sample([example.benchmark for example in examples], limit, self.seed)
        if by_length:
            places.sort(key=lambda place: sum(map(len, shared_text(examples[place]))))
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(places) < world_size:
            raise DataError(f"{split} split has {len(places)} examples; {world_size} processes need at least one each.")
        rows: list[Any] = [examples[place] for place in places]
        if split != "train":
            partners = self._partners(examples, self._collator)
            rows = [(examples[place], examples[partners[place]]) for place in places]
        return DataLoader(
            rows,  # type: ignore[arg-type]
            sampler=UnrepeatedDistributedSampler(rows, num_replicas=world_size, rank=rank, shuffle=False),
            batch_size=self.eval_batch_size,
            collate_fn=self._collator.train if split == "train" else self._collator.evaluate,
            **self._loading,
        )


class ContextMismatchDataModule(PairDataModule):
    """Questions whose sharer and receiver have read different passages (LCF-X); arguments as `PairDataModule`."""

    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        return Collator.of(self.prompts, sharer, receiver)


class SharedContextDataModule(PairDataModule):
    """Chats and questions that sharer and receiver both read (LCF, C2C).

    Args:
        source: What is trained and validated on.
        sharer: The sharer; linked to ``model.sharer`` on the command line.
        receiver: The receiver; linked to ``model.receiver`` on the command line.
        batch_size: Examples per training step and data-parallel rank.
        eval_batch_size: Examples per evaluation step and data-parallel rank.
        prompts: How examples become prompts. Training and validation leave out examples that exceed a token limit.
        benchmarks: By name, the sources whose test splits together are the test split; by default that of ``source``.
        seed: Decides the splits, the training order and the mismatched partners.
        num_workers: Processes that encode batches; 0 encodes in the training process.

    Raises:
        SettingError: If a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        sharer: ModelSpec,
        receiver: ModelSpec,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        prompts: PromptSettings = PromptSettings(),  # noqa: B008 - frozen
        benchmarks: dict[str, Source] | None = None,
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        if source.mismatched:
            raise SettingError(
                f"source={source} is for ContextMismatchDataModule only: here both models read what the sharer reads."
            )
        super().__init__(source, sharer, receiver, batch_size, eval_batch_size, prompts, seed, num_workers)
        self.benchmarks = benchmarks or {}

    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        collator = SharedCollator.of(self.prompts, sharer, receiver)
        return SharedCollator(collator.sharer, collator.receiver, keeps=True)

    def _read(self, split: Split, collator: Collator) -> Sequence[Example]:
        if split == "test" and self.benchmarks:
            return [
                replace(example, id=f"{name}/{example.id}", benchmark=name)
                for name, source in self.benchmarks.items()
                for example in _both_read(source, source.examples("test", self.seed))
            ]
        examples = _both_read(self.source, super()._read(split, collator))
        assert isinstance(collator, SharedCollator)
        kept = [place for place, example in enumerate(examples) if split == "test" or collator.fits(example)]
        if len(kept) < len(examples):
            rank_zero_info(f"{split} split: {len(examples) - len(kept)} of {len(examples)} examples are too long.")
        if not kept:
            raise DataError(f"{split} split: all {len(examples)} examples exceed the token limits of prompts.")
        return Subset(examples, kept)  # type: ignore[arg-type, return-value] # a sequence, if not by inheritance

    def _partners(self, examples: Sequence[Example], collator: Collator) -> list[int]:
        assert isinstance(collator, SharedCollator)
        lengths = [collator.sharer_tokens(example) for example in examples]
        return mismatched_partners(examples, lengths, self.seed, shared_text, [collator.form(row) for row in examples])


def _both_read(source: Source, examples: Sequence[Example]) -> Sequence[Example]:
    """``examples``, if none has passages that only one of the two reads; else a DataError."""
    dealt = next((example for example in examples if example.sharer or example.receiver), None)
    if dealt is not None:
        raise DataError(
            f"source={source} gives {dealt.id!r} passages of one side only; SharedContextDataModule "
            "needs a source whose examples both read, such as Chat, or else take ContextMismatchDataModule."
        )
    return examples


def _require_ids(examples: Sequence[Example], split: Split) -> None:
    """Refuse two examples of one id, which an evaluation would count once: a DataError that names both."""
    seen: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for example in examples:
        counts[example.benchmark] += 1
        here = f"example {counts[example.benchmark]}"
        here += f" of benchmark {example.benchmark!r}" if example.benchmark else ""
        if example.id in seen:
            raise DataError(
                f"{split} split: ids must differ; {example.id!r} is the id of {seen[example.id]} and of {here}."
            )
        seen[example.id] = here
