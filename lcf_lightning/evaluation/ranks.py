"""What the processes of an evaluation divide among themselves, and put together again; one process has it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import DataLoader

T = TypeVar("T")


def dealt(loader: DataLoader[Any]) -> DataLoader[Any]:
    """This rank's share of a loader's batches.

    Whole batches are dealt, in turn, so that each is read as one process would read it, with the same padding.
    """
    if not _many():
        return loader
    own: Any = batches_of(loader)[rank() :: dist.get_world_size()]
    options = {"sampler": own, "batch_size": None} if loader.batch_sampler is None else {"batch_sampler": own}
    return DataLoader(loader.dataset, collate_fn=loader.collate_fn, num_workers=loader.num_workers, **options)


def batches_of(loader: DataLoader[Any]) -> list[Sequence[Any]]:
    """The places of each of a loader's batches, also of one whose sampler makes the batches (`TokenBatches`)."""
    return list(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all ranks, the same on each; every rank must call this."""
    if not _many():
        return list(items)
    parts: list[Sequence[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _many() else 0


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()
