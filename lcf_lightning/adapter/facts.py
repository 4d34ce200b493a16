"""What an adapter's metadata must be where it is read again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lcf_lightning.typed import from_known


@dataclass(frozen=True)
class Facts:
    """Of an adapter's metadata what is read again; more may stand there."""

    steps: int | None = None
    seed: int | None = None
    source: str | None = None
    datasets: list[str] = field(default_factory=list)
    license: str | None = None
    scored_on: str | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How an arm did in a test; likewise. ``low`` and ``high`` bound the exact match."""

    exact_match: float | None
    n: int
    f1: float | None = None
    loss: float | None = None
    low: float | None = None
    high: float | None = None


def require_facts(metadata: dict[str, Any]) -> None:
    """Raise a SettingError that names what of an adapter's metadata is not what it should be."""
    for arm, score in from_known(Facts, metadata, "metadata").scores.items():
        from_known(Score, score, f"metadata.scores.{arm}")
