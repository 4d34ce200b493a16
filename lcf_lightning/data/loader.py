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

from torch.utils.data import DataLoader, DistributedSampler


class ResumableSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch, deals out over the ranks, and can begin in the middle of an epoch."""

    skip = 0  # this rank's examples to leave out at the beginning of the next epoch

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.skip, None)


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
