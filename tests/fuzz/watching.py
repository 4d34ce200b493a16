"""What becomes of an input: taken, refused by an error of the package, or anything else; in what time and memory."""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcf_lightning.errors import LCFError

ROOM = 3 * 2**30
"""Bytes that an input may ask for beyond what the process has, before it is refused any more (and counted foreign)."""


@dataclass
class Found:
    """What became of the inputs of one kind.

    Attributes:
        outcomes: How many were ``taken``, ``refused`` and ``foreign``, an error of anybody else.
        errors: By the name and the place of a foreign error, how many.
        slowest: Seconds of the slowest refusal.
        largest: Bytes of memory that an input took at most, beyond what the process had.
        worst: The inputs behind them.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    worst: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def summary(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs, **{name: self.outcomes[name] for name in ("taken", "refused", "foreign")},
            "largest memory, MB": round(self.largest / 1e6, 1), "slowest refusal, s": round(self.slowest, 3),
            "errors": dict(self.errors.most_common(12)), **self.worst,
        }  # fmt: skip


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within it an input that asks for far too much gets an error, and does not end the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, hard))
    try:
        yield
    finally:  # tests run this program within their own process, and what follows needs its memory
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def watch(use: Callable[[], object], found: Found, label: str) -> None:
    """Use an input, and count what becomes of it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started, outcome = _status("VmRSS"), time.monotonic(), "foreign"
    try:
        use()
        outcome = "taken"
    except LCFError as error:
        outcome = "refused"
        if len(str(error)) > 2000:
            outcome = "foreign"
            found.errors["a sentence of more than 2,000 characters"] += 1
    except Exception as error:  # noqa: BLE001 - counted
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        found.errors[f"{type(error).__name__} at {where}: {str(error)[:60]!r}"] += 1
    found.outcomes[outcome] += 1
    seconds, memory = time.monotonic() - started, _status("VmHWM") - before
    if outcome != "taken" and seconds > found.slowest:
        found.slowest, found.worst["slowest"] = seconds, label
    if outcome != "taken" and memory > found.largest:
        found.largest, found.worst["largest"] = memory, label
