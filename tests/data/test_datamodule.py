from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from transformers import AutoTokenizer

from lcf_lightning import ModelSpec
from lcf_lightning.data.batch import Batch, Collator
from lcf_lightning.data.datamodule import ContextMismatchDataModule, ResumableLoader, ResumableSampler
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptEncoder, PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.models.spec import load_tokenizer

Make = Callable[..., ContextMismatchDataModule]
SIZES = {"train_size": 24, "validation_size": 7, "test_size": 5}


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
    module.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, **loops)  # type: ignore[assignment]
    return module


def real(tokens: Tokens) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def is_left_padded(tokens: Tokens) -> bool:
    return bool((tokens.mask[:, 1:] >= tokens.mask[:, :-1]).all()) and bool(tokens.mask[:, -1].all())


def epoch_of(loader: ResumableLoader, epoch: int) -> Iterable[Batch]:
    """One epoch's batches, as Lightning asks for them."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return iter(loader)


def ids_of(batches: Iterable[Batch]) -> list[list[str]]:
    return [batch.ids for batch in batches]


# Batches


@pytest.mark.parametrize("pair", [("llama", "qwen3"), ("gemma3", "qwen2")])
def test_a_training_batch_has_matching_shapes(make: Make, pair: tuple[str, str]) -> None:
    batch = next(iter(make(pair=pair).train_dataloader()))
    assert len(batch) == len(batch.ids) == len(set(batch.ids)) == 4
    for tokens in (batch.sharer, batch.receiver):
        assert tokens.ids.shape == tokens.mask.shape == tokens.spans.shape == (4, tokens.ids.shape[1])
        assert (tokens.ids.dtype, tokens.mask.dtype, tokens.spans.dtype) == (torch.long, torch.bool, torch.long)
        assert is_left_padded(tokens)
    assert (batch.last.shape, batch.last.dtype) == ((4, 1), torch.long)
    assert batch.answers.shape == batch.answer_mask.shape
    assert (batch.answers.dtype, batch.answer_mask.dtype) == (torch.long, torch.bool)
    assert batch.partners == ()


def test_receiver_last_and_answer_make_up_the_prompt(make: Make, model_folders: dict[str, Path]) -> None:
    module = make()
    tokenizer = AutoTokenizer.from_pretrained(model_folders["qwen3"])
    encoder = PromptEncoder(tokenizer, PromptSettings(), "max_receiver_tokens")
    for batch in module.train_dataloader():
        for row, example in enumerate(batch.examples):
            prompt = encoder.prompt(example.receiver, example.question)
            assert real(batch.receiver)[row] + batch.last[row].tolist() == prompt.ids
            assert batch.receiver.spans[row][batch.receiver.mask[row]].tolist() == prompt.spans[:-1]
            assert batch.answers[row][batch.answer_mask[row]].tolist() == encoder.answer(example.answers[0])
            assert set(batch.answers[row][~batch.answer_mask[row]].tolist()) <= {tokenizer.pad_token_id}


def test_answers_are_padded_on_the_right(make: Make) -> None:
    batches = list(make().train_dataloader())
    assert any((~batch.answer_mask).any() for batch in batches)
    for batch in batches:
        assert batch.answer_mask[:, 0].all()
        assert (batch.answer_mask[:, 1:] <= batch.answer_mask[:, :-1]).all()
        assert batch.answer_mask.any(0).all()  # no wider than the longest


@pytest.mark.parametrize("share", [True, False])
def test_the_sharer_reads_its_passages_and_maybe_the_question(
    make: Make, model_folders: dict[str, Path], share: bool
) -> None:
    settings = PromptSettings(share_question=share)
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model_folders["llama"]), settings, "max_sharer_tokens")
    batch = next(iter(make(prompts=settings).train_dataloader()))
    for row, example in enumerate(batch.examples):
        prompt = encoder.prompt(example.sharer, example.question if share else None)
        assert real(batch.sharer)[row] == prompt.ids
        assert int(batch.sharer.spans[row].max()) == len(example.sharer) - (not share)


def test_evaluation_batches_name_the_example_whose_message_is_wrong(make: Make) -> None:
    module = make("validate")
    examples = list(World(**SIZES).examples("validation", 42))
    batches = list(module.val_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [id for batch in batches for id in batch.ids] == [example.id for example in examples]
    partners = [partner for batch in batches for partner in batch.partners]
    assert sorted(partner.id for partner in partners) == sorted(example.id for example in examples)
    assert all(example.sharer != partner.sharer for example, partner in zip(examples, partners, strict=True))


def test_a_limited_evaluation_is_the_beginning_of_the_whole(make: Make) -> None:
    """Partners too, so that an evaluation can be extended."""
    module = make("test")
    whole, first = (
        [pair for batch in module.evaluation_loader("test", limit) for pair in zip(batch.examples, batch.partners)]  # noqa: B905
        for limit in (None, 4)
    )
    assert len(whole) == 5
    assert first == whole[:4]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_evaluation_without_repeating(make: Make, world_size: int) -> None:
    ids: list[list[str]] = []
    for rank in range(world_size):
        loader = on_rank(make("validate"), rank, world_size).val_dataloader()
        ids.append([id for batch in loader for id in batch.ids])
    assert sorted(id for part in ids for id in part) == sorted(e.id for e in World(**SIZES).examples("validation", 42))
    assert max(map(len, ids)) - min(map(len, ids)) == 1  # seven on two or three


def test_fewer_examples_than_ranks_are_refused(make: Make) -> None:
    with pytest.raises(DataError, match="validation split has 7 examples; 8 processes need at least one each"):
        on_rank(make("validate"), 0, 8).val_dataloader()
    assert len(list(on_rank(make("validate"), 6, 7).val_dataloader())) == 1


def test_evaluation_is_the_same_every_time(make: Make) -> None:
    first, second = (next(iter(make("test", seed=5).test_dataloader())) for _ in range(2))
    assert first.ids == second.ids
    assert first.partners == second.partners
    assert first.ids != next(iter(make("test", seed=6).test_dataloader())).ids


def test_each_stage_loads_its_split(make: Make) -> None:
    assert "validation" in next(iter(make("validate").val_dataloader())).ids[0]
    assert "/test/" in next(iter(make("test").test_dataloader())).ids[0]
    assert "/test/" in next(iter(make("predict").predict_dataloader())).ids[0]
    fit = make("fit")
    assert "/train/" in next(iter(fit.train_dataloader())).ids[0]
    assert sum(map(len, fit.val_dataloader())) == 7


def test_a_limit_reaches_the_batch(make: Make) -> None:
    free, limited = (
        next(iter(make("test", prompts=PromptSettings(max_receiver_tokens=limit)).test_dataloader()))
        for limit in (None, 60)
    )
    assert free.dropped_spans == 0 < limited.dropped_spans
    assert limited.receiver.ids.shape[1] + 1 <= 60 < free.receiver.ids.shape[1]


def test_a_batch_moves_with_all_its_tensors(make: Make) -> None:
    batch = next(iter(make("test").test_dataloader()))
    moved = batch.to("meta")
    sides = (moved.sharer, moved.receiver)
    tensors = [t for side in sides for t in (side.ids, side.mask, side.spans)]
    tensors += [moved.last, moved.answers, moved.answer_mask]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.examples, moved.partners, moved.prompts) == (batch.examples, batch.partners, batch.prompts)
    assert batch.last.device.type == "cpu"


# Order


def test_an_epoch_shows_every_example_once(make: Make) -> None:
    loader = make().train_dataloader()
    first, second = ids_of(epoch_of(loader, 0)), ids_of(epoch_of(loader, 1))
    for epoch in (first, second):
        assert sorted(chain(*epoch)) == sorted(example.id for example in World(**SIZES).examples("train", 42))
    assert first != second
    assert len(first) == len(loader) == 6


def test_a_rest_that_fills_no_batch_is_left_out(make: Make) -> None:
    loader = make(batch_size=5).train_dataloader()
    batches = ids_of(epoch_of(loader, 0))
    assert [len(batch) for batch in batches] == [5] * 4
    assert len(loader) == 4


def test_the_seed_decides_the_order(make: Make) -> None:
    orders = [
        [id.rsplit("/", 1)[1] for batch in ids_of(epoch_of(make(seed=seed).train_dataloader(), 3)) for id in batch]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0], key=int)


def test_ranks_share_out_the_batch_of_one_process(make: Make) -> None:
    whole = ids_of(epoch_of(make(batch_size=8).train_dataloader(), 2))
    module = make(batch_size=4)
    ranks = [ids_of(epoch_of(on_rank(module, rank, 2).train_dataloader(), 2)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == len(ranks[1]) == 3
    for together, first, second in zip(whole, *ranks, strict=True):
        assert not set(first) & set(second)
        assert set(first) | set(second) == set(together)


# Resuming


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_hands_out_the_remaining_batches(make: Make, workers: int) -> None:
    module = make(num_workers=workers)
    whole = ids_of(epoch_of(module.train_dataloader(), 1))
    for done in (1, 5, 6):
        resumed = module.train_dataloader()
        resumed.done = lambda done=done: done
        assert ids_of(epoch_of(resumed, 1)) == whole[done:]
        resumed.done = lambda: 0
        assert ids_of(epoch_of(resumed, 2)) == ids_of(epoch_of(module.train_dataloader(), 2))
    assert len(whole) == 6


def test_ranks_resume_together(make: Make) -> None:
    module = make(batch_size=2)
    rest = []
    for rank in (0, 1):
        resumed = on_rank(module, rank, 2).train_dataloader()
        whole = ids_of(epoch_of(resumed, 0))
        resumed.done = lambda: 4
        rest.append(ids_of(epoch_of(resumed, 0)))
        assert rest[rank] == whole[4:]
    assert len(rest[0]) == len(rest[1]) == 2
    assert not {id for batch in rest[0] for id in batch} & {id for batch in rest[1] for id in batch}


class Recorder(pl.LightningModule):
    """Trains one number and notes which examples came, in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[str]]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.ids))
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(root: Path, **changes: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 3, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1, **quiet}
    return pl.Trainer(default_root_dir=root, **(options | {"enable_checkpointing": False} | changes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stop", "limit"), [(4, None), (6, None), (8, None), (6, 4), (4, 4)])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(
    make: Make, tmp_path: Path, stop: int, limit: int | None
) -> None:
    """Resumed after ``stop`` steps of epochs of 6, in the middle or at an end, also where epochs are cut short."""
    limits = {} if limit is None else {"limit_train_batches": limit}
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, resumed = Recorder(), Recorder()
    trainer(tmp_path, callbacks=[saving], enable_checkpointing=True, **limits).fit(whole, datamodule=make())
    trainer(tmp_path, **limits).fit(resumed, datamodule=make(), ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert len(whole.seen) == 3 * (limit or 6)
    assert resumed.seen == whole.seen[stop:]


def test_too_few_examples_for_a_batch_are_refused(make: Make) -> None:
    """Lightning would train nothing, and say so in a line of its log."""
    module = make(batch_size=13)
    assert len(module.train_dataloader()) == 1
    with pytest.raises(DataError, match="batch_size=13 is more than train split gives: 24 examples on 2 processes"):
        on_rank(module, 1, 2).train_dataloader()


def test_a_sampler_skips_only_the_beginning() -> None:
    plain, skipping = (ResumableSampler(range(10), num_replicas=1, rank=0, seed=3) for _ in range(2))  # type: ignore[arg-type]
    skipping.skip = 7
    assert list(skipping) == list(plain)[7:]
    assert sorted(plain) == list(range(10))


# Settings


@pytest.mark.parametrize("setting", ["batch_size", "eval_batch_size"])
def test_batch_sizes_below_one_are_refused(make: Make, setting: str) -> None:
    for value in (0, -3):
        with pytest.raises(SettingError, match=f"^{setting}={value} must be at least 1"):
            make(**{setting: value})
    assert getattr(make(**{setting: 1}), setting) == 1


def test_a_negative_number_of_workers_is_refused(make: Make) -> None:
    with pytest.raises(SettingError, match="num_workers=-1"):
        make(num_workers=-1).train_dataloader()
    assert make(num_workers=0).train_dataloader().num_workers == 0


def test_a_chat_without_template_is_refused(make: Make, model_folders: dict[str, Path], tmp_path: Path) -> None:
    own = AutoTokenizer.from_pretrained(model_folders["llama"])
    own.chat_template = None
    own.save_pretrained(tmp_path)
    collated = Collator.of(PromptSettings(chat=False), own, load_tokenizer(ModelSpec(str(model_folders["qwen3"]))))
    assert isinstance(collated.train([Example("1", "q", ("a",), (("s",),), (("r",),))]), Batch)
    with pytest.raises(SettingError, match="chat=true needs a tokenizer with a chat template"):
        Collator.of(PromptSettings(chat=True), own, own)
