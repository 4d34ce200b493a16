"""`Fault`: one of those that `tests/fault_list.py` lists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A change that no test may let pass.

    Attributes:
        group: What it is a fault of.
        old: Text that stands once in the package.
        new: What it becomes.
        tests: Files or folders of tests that should notice.
    """

    group: str
    old: str
    new: str
    tests: str


def faults(group: str, tests: str, *changes: tuple[str, str]) -> list[Fault]:
    return [Fault(group, old, new, tests) for old, new in changes]
