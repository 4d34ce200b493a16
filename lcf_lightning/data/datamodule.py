"""DataModules: examples to batches, in an order that a resumed run continues."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.batch import Batch, Collator
from lcf_lightning.data.checks import (
    require_at_least,
    require_examples,
    require_ids,
    require_read_by_both,
    require_same_batches,
)
from lcf_lightning.data.example import Example
from lcf_lightning.data.limited import Rows, TokenBatches
from lcf_lightning.data.loader import GroupedSampler, ResumableLoader, ResumableSampler, examples_taken
from lcf_lightning.data.partition import mismatched_partners, sent_text, shared_text, shuffled
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sample import sample
from lcf_lightning.data.shared import SharedCollator, read_alike
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.data.written import Writing, WrittenExamples, write_all
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
        benchmarks: By name, the sources whose test splits together are the test split; by default that of ``source``.
        seed: Decides the splits, who reads what, the training order and the mismatched partners.
        num_workers: Processes that encode batches; 0 encodes in the training process.
        group_by_length: Whether training batches hold examples of like length (`GroupedSampler`). What a fit takes is
            then written as tokens before it begins, and kept on disk (`write_all`).
        eval_batch_tokens: An evaluation batch's examples times the tokens of its longest, at most: those of both
            models' prompts and of the answer. A longer example is a batch of its own. Null for no limit.

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
        group_by_length: bool = False,
        eval_batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_at_least(0, num_workers=num_workers)
        if eval_batch_tokens is not None and eval_batch_tokens < 1:
            raise SettingError(f"eval_batch_tokens={eval_batch_tokens} must be at least 1, or null for no limit.")
        for each in (source, *(benchmarks or {}).values()):
            self._check(each)
        self.source, self.sharer, self.receiver = source, sharer, receiver
        self.benchmarks = benchmarks or {}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.prompts, self.seed, self.num_workers = prompts, seed, num_workers
        self.group_by_length, self.eval_batch_tokens = group_by_length, eval_batch_tokens
        self._examples: dict[Split, Sequence[Example]] = {}
        self._written: dict[Split, WrittenExamples] = {}
        self._collator: Collator | None = None

    @property
    def tested_on(self) -> str:
        """What the test split is of."""
        return ", ".join(self.benchmarks) or str(self.source)

    def _check(self, source: Source) -> None:
        """Raise a SettingError if a source is not for this module."""

    @abstractmethod
    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        """What writes the prompts."""

    def _read(self, split: Split, collator: Collator) -> Sequence[Example]:
        """The examples of a split; those of the training split as tokens too, where batches are grouped."""
        if split == "test" and self.benchmarks:
            return [
                replace(example, id=f"{name}/{example.id}", benchmark=name)
                for name, source in self.benchmarks.items()
                for example in self._examples_of(source, "test")
            ]
        examples = self._examples_of(self.source, split)
        return self._write(split, examples, collator) if self._is_written(split) else examples

    def _examples_of(self, source: Source, split: Split) -> Sequence[Example]:
        return require_examples(source, source.examples(split, self.seed))

    def _is_written(self, split: Split) -> bool:
        """Whether a split's examples are written as tokens before it is read."""
        return split == "train" and self.group_by_length

    def _write(self, split: Split, examples: Sequence[Example], collator: Collator) -> Sequence[Example]:
        """Those of a split's examples that fit, which are kept as tokens; of grouped ones as many as a fit takes."""
        order: Sequence[int] = range(len(examples))
        enough = None
        if split == "train" and self.group_by_length:
            order, enough = shuffled(order, f"train/{self.seed}"), examples_taken(self.trainer, self.batch_size)
        make = Writing(examples, collator, str(self.source))
        written = self._written[split] = write_all(make, split, order, enough, self.num_workers)
        return Subset(examples, written.places.tolist())  # type: ignore[arg-type, return-value] # but no Sequence

    def _partners(self, split: Split, examples: Sequence[Example], collator: Collator) -> list[int]:
        """For every example the one whose message is the wrong one for it."""
        return mismatched_partners(examples, self._sharer_tokens(split, examples, collator), self.seed, sent_text)

    def _sharer_tokens(self, split: Split, examples: Sequence[Example], collator: Collator) -> Sequence[int]:
        if split in self._written:
            return [int(tokens) for tokens in self._written[split].sharer_tokens]
        return [collator.sharer_tokens(example) for example in examples]

    def setup(self, stage: str) -> None:
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        if self._collator is None:
            self._collator = self._make_collator(load_tokenizer(self.sharer), load_tokenizer(self.receiver))
        for split in splits.get(stage, ("test",)):
            if split not in self._examples or (split == "train" and self.group_by_length):  # another fit may take more
                examples = self._read(split, self._collator)
                self._examples[split] = examples if split == "train" else require_ids(examples, split)

    def train_dataloader(self) -> ResumableLoader:
        assert self._collator is not None, "setup() runs first"
        assert self.trainer is not None, "a Trainer asks for the training loader"
        count, ranks = len(self._examples["train"]), self.trainer.world_size
        if count // ranks < self.batch_size:
            raise DataError(
                f"batch_size={self.batch_size} is more than train split gives: {count} examples on {ranks} processes."
            )
        written, rank = self._written.get("train"), self.trainer.global_rank
        dataset: Any = self._examples["train"] if written is None else written
        if written is not None and self.group_by_length:
            sampler: ResumableSampler = GroupedSampler(written.tokens, self.batch_size, ranks, rank, self.seed)
        else:
            sampler = ResumableSampler(dataset, num_replicas=ranks, rank=rank, seed=self.seed, drop_last=True)
        loader = ResumableLoader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=True,
            collate_fn=self._collator.train if written is None else self._collator.train_written,
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
        grouped, train = self.group_by_length, self._examples.get("train", ())
        taken = {} if grouped else {"train": len(train)}  # of grouped ones as many as a fit takes, which may be longer
        return {"examples": self.batch_size * self.trainer.world_size, "group_by_length": grouped, **taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to continue a fit with other batches, which would skip examples or repeat them: a SettingError."""
        assert self.trainer is not None, "a Trainer restores this"
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_same_batches(self.state_dict(), state, self.batch_size, self.trainer.world_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("test")

    predict_dataloader = test_dataloader

    def read_by_both(self, texts: int) -> Iterator[Batch]:
        """What the sharer reads of up to ``texts`` training examples, as both models would read it, one by one."""
        assert self._collator is not None, "setup() runs first"
        collator, train = read_alike(self._collator), self._examples["train"]
        for example in map(train.__getitem__, range(min(texts, len(train)))):
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
            partners = self._partners(split, examples, self._collator)
            rows = [(examples[place], examples[partners[place]]) for place in places]
        own = UnrepeatedDistributedSampler(rows, num_replicas=world_size, rank=rank, shuffle=False)
        options: dict[str, Any] = {"sampler": own, "batch_size": self.eval_batch_size}
        if self.eval_batch_tokens is not None:
            limits = self.eval_batch_size, self.eval_batch_tokens
            options = {"sampler": TokenBatches(own, self._tokens(split, examples, places), *limits), "batch_size": None}
        collate = self._collator.train if split == "train" else self._collator.evaluate
        return DataLoader(Rows(rows), collate_fn=collate, **self._loading, **options)  # type: ignore[arg-type]

    def _tokens(self, split: Split, examples: Sequence[Example], places: Sequence[int]) -> list[int]:
        """How many tokens both models read and write of some of a split's examples."""
        assert self._collator is not None
        if split in self._written:
            return [int(self._written[split].tokens[place]) for place in places]
        return [self._collator.write(examples[place], self.prompts.sharers).tokens for place in places]


class ContextMismatchDataModule(PairDataModule):
    """Questions whose sharer and receiver have read different passages (LCF-X); arguments as `PairDataModule`.

    Who shares a question but has read no passage shares what it makes of the question.
    """

    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        return Collator.of(self.prompts, sharer, receiver)


class SharedContextDataModule(PairDataModule):
    """Chats and questions that sharer and receiver both read (LCF, C2C); arguments as `PairDataModule`.

    Training and validation leave out examples that exceed a token limit of ``prompts``.
    """

    def _check(self, source: Source) -> None:
        if source.mismatched:
            raise SettingError(
                f"source={source} is for ContextMismatchDataModule only: here both models read what the sharer reads."
            )

    def _make_collator(self, sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> Collator:
        collator = SharedCollator.of(self.prompts, sharer, receiver)
        return SharedCollator(collator.sharer, collator.receiver, keeps=True)

    def _is_written(self, split: Split) -> bool:
        limits = any(getattr(self.prompts, f"max_{of}_tokens") is not None for of in ("sharer", "receiver", "total"))
        return split != "test" and (limits or super()._is_written(split))

    def _examples_of(self, source: Source, split: Split) -> Sequence[Example]:
        examples = super()._examples_of(source, split)
        return examples if self._is_written(split) else require_read_by_both(source, examples)

    def _partners(self, split: Split, examples: Sequence[Example], collator: Collator) -> list[int]:
        assert isinstance(collator, SharedCollator)
        lengths, forms = self._sharer_tokens(split, examples, collator), [collator.form(row) for row in examples]
        return mismatched_partners(examples, lengths, self.seed, shared_text, forms)
