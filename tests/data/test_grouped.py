"""Training batches of like length, and evaluation batches that a limit of tokens keeps small."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import TrainerFn

from lcf_lightning import ContextMismatchDataModule, ModelSpec
from lcf_lightning.data.limited import TokenBatches
from lcf_lightning.data.loader import POOL, GroupedSampler, examples_taken
from lcf_lightning.data.sources import World
from lcf_lightning.errors import SettingError
from tests.data.conftest import SIZES, Make, epoch_of, ids_of, on_rank
from tests.data.test_loader import Recorder, trainer
from tests.pairs import small_data, small_module, small_trainer

LENGTHS = np.random.default_rng(0).lognormal(5, 1, 1_000).astype(np.int32)


def batches_of(
    lengths: Any = LENGTHS, size: int = 4, ranks: int = 1, rank: int = 0, epoch: int = 0, seed: int = 1, skip: int = 0
) -> list[list[int]]:
    sampler = GroupedSampler(lengths, size, ranks, rank, seed)
    sampler.set_epoch(epoch)
    sampler.skip = skip * size
    places = list(sampler)
    return [places[at : at + size] for at in range(0, len(places), size)]


def padding(batches: list[list[int]]) -> int:
    return sum(int(max(LENGTHS[batch]) * len(batch) - sum(LENGTHS[batch])) for batch in batches)


def test_groups_leave_little_padding() -> None:
    plain = np.random.default_rng(1).permutation(1_000).reshape(-1, 4).tolist()
    for epoch in (0, 1):
        assert padding(batches_of(epoch=epoch)) < 0.15 * padding(plain)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 1_500), size=st.integers(1, 9), ranks=st.integers(1, 4), epoch=st.integers(0, 2),
    done=st.integers(0, 400),
)  # fmt: skip
def test_no_example_is_lost_or_doubled_on_any_ranks_from_any_place(
    count: int, size: int, ranks: int, epoch: int, done: int
) -> None:
    lengths = LENGTHS[np.arange(count) % 1_000]
    whole = batches_of(lengths, size * ranks, epoch=epoch)
    assert len(whole) == count // (size * ranks)
    assert len({*chain(*whole)}) == len(whole) * size * ranks
    shares = [batches_of(lengths, size, ranks, rank, epoch) for rank in range(ranks)]
    assert [sorted(chain(*together)) for together in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]
    for rank, share in enumerate(shares):
        assert batches_of(lengths, size, ranks, rank, epoch, skip=done) == share[done:]


def test_seed_and_epoch_decide_the_order() -> None:
    assert batches_of() == batches_of() != batches_of(seed=2)
    assert batches_of(epoch=1) == batches_of(epoch=1) != batches_of(epoch=2)
    lengths = [int(LENGTHS[batch[0]]) for batch in batches_of()[:POOL]]
    assert lengths != sorted(lengths)


def test_a_longer_fit_goes_on_in_the_same_order() -> None:
    pool = 4 * POOL
    assert batches_of(LENGTHS[: 2 * pool]) == batches_of()[: 2 * POOL]


# In a fit


def test_an_epoch_shows_every_example_once(make: Make) -> None:
    grouped, plain = (make(group_by_length=on).train_dataloader() for on in (True, False))
    for epoch in (0, 1):
        ids = ids_of(epoch_of(grouped, epoch))
        assert sorted(chain(*ids)) == sorted(example.id for example in World(**SIZES).examples("train", 42))
        assert len(ids) == len(grouped) == 6
        assert ids != ids_of(epoch_of(plain, epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_hands_out_the_remaining_batches(make: Make, workers: int) -> None:
    module = make(num_workers=workers, group_by_length=True)
    whole = ids_of(epoch_of(module.train_dataloader(), 1))
    resumed = module.train_dataloader()
    resumed.done = lambda: 4
    assert ids_of(epoch_of(resumed, 1)) == whole[4:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [4, 6, 8])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(make: Make, tmp_path: Path, stop: int) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, resumed = Recorder(), Recorder()
    data = {"group_by_length": True}
    trainer(tmp_path, callbacks=[saving], enable_checkpointing=True).fit(whole, datamodule=make(**data))
    trainer(tmp_path).fit(resumed, datamodule=make(**data), ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert len(whole.seen) == 18
    assert resumed.seen == whole.seen[stop:]


@pytest.mark.slow
def test_an_interrupted_fit_ends_with_the_same_adapter(spec: Callable[[str], ModelSpec], tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")

    def run(**options: Any) -> dict[str, Any]:
        module = small_module(*pair)
        keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        data = small_data(*pair, batch_size=8, group_by_length=True)
        small_trainer(tmp_path, keeper, max_steps=16).fit(module, datamodule=data, weights_only=True, **options)
        return dict(module.adapter.state_dict())

    whole = run()
    for step in (3, 8, 13):  # within an epoch, at its end, in the second
        for name, tensor in run(ckpt_path=tmp_path / f"step={step}.ckpt").items():
            assert tensor.equal(whole[name])


def test_a_fit_is_not_continued_with_other_batches(make: Make) -> None:
    grouped, plain = on_rank(make(group_by_length=True), 0, 1), on_rank(make(), 0, 1)
    for module in (grouped, plain):
        module.trainer.state = SimpleNamespace(fn=TrainerFn.FITTING)  # type: ignore[union-attr, assignment]
        module.load_state_dict(module.state_dict())
    plain.load_state_dict({"examples": 4})  # of a release that knew no groups
    with pytest.raises(SettingError, match="group_by_length=False must be True to continue this fit"):
        plain.load_state_dict(grouped.state_dict())
    with pytest.raises(SettingError, match="group_by_length=True must be False"):
        grouped.load_state_dict({"examples": 4})


@pytest.mark.parametrize(
    ("options", "pools"),
    [
        ({"max_steps": 300, "accumulate_grad_batches": 65, "val_check_interval": 6500}, 391),
        ({"max_steps": 10}, 1),
        ({"max_steps": 50}, 2),  # one batch more than is taken: the epoch does not end
        ({"max_steps": 10, "val_check_interval": 200}, 5),
        ({"max_steps": 10, "limit_train_batches": 10}, 1),
        ({"max_steps": 10, "limit_train_batches": 9}, None),
        ({"max_steps": 10, "limit_train_batches": 0.5}, None),
        ({"max_steps": 10, "val_check_interval": 0.5}, None),
        ({"max_epochs": 1}, None),
        ({"max_epochs": 1, "limit_train_batches": 60}, 2),
        ({"fast_dev_run": 2, "accumulate_grad_batches": 65}, 1),
    ],
    ids=str,
)
def test_a_fit_that_ends_within_an_epoch_takes_so_many(options: dict[str, Any], pools: int | None) -> None:
    given = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    if isinstance(options.get("val_check_interval"), int):
        given["check_val_every_n_epoch"] = None
    assert examples_taken(pl.Trainer(**given, **options), 4) == (None if pools is None else pools * POOL * 4)


# In an evaluation


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), ranks=st.integers(1, 3))
def test_no_batch_exceeds_the_limit_and_the_order_stays(lengths: list[int], ranks: int) -> None:
    for rank in range(min(ranks, len(lengths))):
        own = UnrepeatedDistributedSampler(lengths, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        sampler = TokenBatches(own, lengths, 5, 400)
        batches = list(sampler)
        assert list(chain(*batches)) == list(own)
        assert len(batches) == len(sampler)
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            assert len(batch) <= 5
            assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 400
            if after is not None:  # one more would not have fitted
                longest = max(lengths[place] for place in [*batch, after[0]])
                assert len(batch) == 5 or (len(batch) + 1) * longest > 400


def test_long_rows_make_smaller_batches_in_the_same_order(make: Make) -> None:
    world = World(**SIZES | {"test_size": 20})
    free, limited, alone = (
        list(make("test", source=world, eval_batch_size=8, eval_batch_tokens=limit).test_dataloader())
        for limit in (None, 1_000, 1)
    )
    assert [len(batch) for batch in free] == [8, 8, 4]
    assert [len(batch) for batch in alone] == [1] * 20
    assert 1 < max(map(len, limited)) < 8
    rows = [
        [(row.id, other.id) for batch in batches for row, other in zip(batch.examples, batch.partners, strict=True)]
        for batches in (free, limited, alone)
    ]
    assert rows[0] == rows[1] == rows[2]
    for batch in limited:
        sides = (batch.sharer.mask, batch.receiver.mask, batch.answer_mask)
        longest = max(sum(int(side[row].sum()) for side in sides) + 1 for row in range(len(batch)))
        assert len(batch) * longest <= 1_000
    with pytest.raises(SettingError, match="eval_batch_tokens=0 must be at least 1, or null"):
        make("test", eval_batch_tokens=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_evaluates_and_predicts_batches_of_so_many_tokens(
    spec: Callable[[str], ModelSpec], tmp_path: Path, workers: int
) -> None:
    """Lightning makes loaders anew where it predicts."""
    pair = spec("llama"), spec("qwen3")
    seen = []
    for limit in (None, 300):
        data = small_data(*pair, eval_batch_tokens=limit, num_workers=workers)
        assert isinstance(data, ContextMismatchDataModule)
        rows = small_trainer(tmp_path).predict(small_module(*pair), datamodule=data)
        assert rows is not None
        seen.append([[row["id"] for row in batch] for batch in rows])  # type: ignore[index, union-attr]
        small_trainer(tmp_path).validate(small_module(*pair), datamodule=data, verbose=False)
    assert list(chain(*seen[0])) == list(chain(*seen[1]))
    assert len(seen[0]) < len(seen[1])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_fit_is_not_continued_with_another_number_of_examples(make: Make, grouped: bool) -> None:
    """Its order would be another. One that groups by length may take more: it is longer then."""
    module = on_rank(make(group_by_length=grouped), 0, 1)
    module.trainer.state = SimpleNamespace(fn=TrainerFn.FITTING)  # type: ignore[union-attr, assignment]
    saved, train = module.state_dict(), module._examples["train"]
    module.load_state_dict(saved)
    module._examples["train"] = [train[place] for place in range(len(train) - 1)]
    if grouped:
        module.load_state_dict(saved)
        return
    with pytest.raises(SettingError, match="train split has 23 examples; to continue this fit it must have 24, as it"):
        module.load_state_dict(saved)
