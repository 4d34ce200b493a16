"""Milliseconds of what is done stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Milliseconds of named stages, by a monotonic clock, the device synchronised at both ends.

    Args:
        device: Where the work runs.

    Attributes:
        milliseconds: By stage, in the order in which they ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = self.now()
        yield
        self.milliseconds[stage] = self.now() - started

    def now(self) -> float:
        """Milliseconds since some moment, when all that was asked of the device is done."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter() * 1e3
