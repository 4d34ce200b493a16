"""Milliseconds of what is done stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event
"""A moment: milliseconds of a monotonic clock, or a place in what a CUDA device does."""


class Stopwatch:
    """Milliseconds of named stages.

    By a monotonic clock, the device synchronised at both ends; or, where nothing may wait for a CUDA device, by events
    in what it does, so that the times are known when it is done.

    Args:
        device: Where the work runs.
        waits: Whether the device may be synchronised.
    """

    def __init__(self, device: torch.device, waits: bool = True) -> None:
        self._device, self._events = device, device.type == "cuda" and not waits
        self._stages: dict[str, tuple[Mark, Mark]] = {}

    @property
    def milliseconds(self) -> dict[str, float]:
        """By stage, in the order in which they ended; waits for the last of them."""
        return {stage: _between(*ends) for stage, ends in self._stages.items()}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = self.now()
        yield
        self.note(stage, started, self.now())

    def note(self, stage: str, started: Mark, ended: Mark) -> None:
        """Note a stage that has ended."""
        self._stages[stage] = (started, ended)

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def now(self) -> Mark:
        """The moment when all that was asked of the device is done."""
        if self._events:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter() * 1e3


def _between(started: Mark, ended: Mark) -> float:
    if isinstance(started, float) and isinstance(ended, float):
        return ended - started
    assert not isinstance(started, float), "one stopwatch, one kind"
    assert not isinstance(ended, float), "one stopwatch, one kind"
    ended.synchronize()
    return float(started.elapsed_time(ended))
