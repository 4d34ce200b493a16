"""The training loader: its order, its ranks, and how a resumed run goes on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import ResumableSampler
from lcf_lightning.data.sources import World
from lcf_lightning.errors import DataError
from tests.data.conftest import SIZES, Make, epoch_of, ids_of, on_rank


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
