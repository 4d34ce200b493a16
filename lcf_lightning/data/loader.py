"""A training loader that goes on in the middle of an epoch, on any number of ranks.

torchdata's StatefulDataLoader (0.11) was tried in its place. With its own distributed sampler, a fit that is resumed
from an epoch's last step skips the whole next epoch where ``max_epochs`` is set, and sees other batches where
``max_steps`` is; with torch's sampler it fails where epochs are cut short. Here the place in an epoch follows from the
batches that the Trainer itself counts as done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from lcf_lightning.data.partition import shuffled

POOL = 50
"""Batches of all ranks together that are filled from one pool of examples (`GroupedSampler`)."""


class ResumableSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch, deals out over the ranks, and can begin in the middle of an epoch."""

    skip = 0  # this rank's examples to leave out at the beginning of the next epoch

    def __iter__(self) -> Iterator[Any]:
        return islice(self._order(), self.skip, None)

    def _order(self) -> Iterator[Any]:
        """An epoch's examples of this rank."""
        return super().__iter__()


class GroupedSampler(ResumableSampler):
    """A `ResumableSampler` whose batches hold examples of like length, so that little of them is padding.

    An epoch's order is cut into pools of `POOL` batches. Within a pool examples are sorted by length and cut into
    batches of all ranks together, whose order is drawn; each rank has every ``num_replicas``-th example of a batch. The
    first epoch's order is that of the examples, so that it can begin before all of them are known: a pool depends on no
    later one. What fills no batch is left out, as without groups.

    Args:
        lengths: ``[examples]``, int32: each example's tokens.
        batch_size: Examples of a batch on one rank.
        num_replicas: Ranks.
        rank: This one.
        seed: Decides the order.
    """

    def __init__(self, lengths: NDArray[np.int32], batch_size: int, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(lengths, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.lengths, self.size = lengths, batch_size * num_replicas

    def _order(self) -> Iterator[int]:
        order = np.arange(len(self.lengths))
        if self.epoch > 0:
            order = np.asarray(shuffled(order.tolist(), f"order/{self.seed}/{self.epoch}"))
        order = order[: len(order) // self.size * self.size]
        for start in range(0, len(order), POOL * self.size):
            pool = order[start : start + POOL * self.size]
            batches = pool[np.argsort(self.lengths[pool], kind="stable")].reshape(-1, self.size)
            for number in shuffled(range(len(batches)), f"pool/{self.seed}/{self.epoch}/{start}"):
                yield from batches[number, self.rank :: self.num_replicas].tolist()


def examples_taken(trainer: pl.Trainer | None, batch_size: int) -> int | None:
    """How many examples a fit takes, in whole pools, that ends within its first epoch; None where it may see all."""
    if trainer is None:
        return None
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval  # numbers of batches, or fractions
    taken = [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps >= 0 else []
    taken += [limit] if isinstance(limit, int) and trainer.max_epochs == 1 else []
    batches = min(taken, default=0)
    several_epochs = limit < batches if isinstance(limit, int) else limit < 1
    if not taken or several_epochs or (isinstance(interval, float) and interval < 1):
        return None
    batches = max(batches, interval if isinstance(interval, int) else 0)
    return (batches // POOL + 1) * POOL * batch_size * trainer.world_size


class ResumableLoader(DataLoader[Any]):
    """A loader that begins an epoch after the batches that are done, of which the Trainer's checkpoints keep count."""

    done: Callable[[], int] = staticmethod(lambda: 0)  # batches of this epoch that need not come again

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: this runs at the first batch, when Lightning has restored its count and set the epoch.
        if isinstance(self.sampler, ResumableSampler):  # Lightning may put another one (overfit_batches)
            self.sampler.skip = self.done() * (self.batch_size or 1)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: tells Lightning, which would warn else, that this loader can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: Lightning forgets to call this where ``max_epochs`` is set."""
