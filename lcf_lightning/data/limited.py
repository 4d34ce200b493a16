"""Evaluation batches that a limit of tokens keeps small where examples are long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DistributedSampler


class TokenBatches(DistributedSampler[Any]):
    """This rank's places, in order, in batches: as many as fit a limit of tokens, padding included, and one at least.

    For a loader whose ``batch_size`` is None, over `Rows`; Lightning would replace a ``batch_sampler``.

    Args:
        own: This rank's places.
        lengths: Tokens of each of all ranks' rows.
        size: Places of a batch at most.
        tokens: Places of a batch times the tokens of its longest, at most.
    """

    def __init__(self, own: DistributedSampler[Any], lengths: Sequence[int], size: int, tokens: int) -> None:
        super().__init__(own.dataset, num_replicas=own.num_replicas, rank=own.rank, shuffle=False)
        self.batches: list[list[int]] = []
        longest = 0
        place: Any
        for place in own:
            longest, count = max(longest, lengths[place]), len(self.batches[-1]) + 1 if self.batches else 1
            if count == 1 or count > size or count * longest > tokens:
                self.batches.append([])
                longest = lengths[place]
            self.batches[-1].append(place)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Rows(list[Any]):
    """A list that gives a batch for the places of one."""

    def __getitem__(self, places: Any) -> Any:
        return [self[place] for place in places] if isinstance(places, list) else super().__getitem__(places)
