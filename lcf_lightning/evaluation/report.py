"""From answers to figures: one summary, one table."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import TypedDict

from rich.table import Table

from lcf_lightning.evaluation.arms import Answer


class Figures(TypedDict):
    """One arm's scores: means over ``n`` distinct examples; loss in nats."""

    exact_match: float
    f1: float
    loss: float
    n: int


class Summary(TypedDict):
    """Figures per arm, for questions that need the sharer and for those the receiver can answer alone."""

    arms: dict[str, Figures]
    own_questions: dict[str, Figures]


def summarise(answers: Iterable[Answer]) -> Summary:
    """Figures per arm; an example that occurs twice (a sampler's padding) counts once."""
    distinct = {(answer.arm, answer.id): answer for answer in answers}.values()

    def group(needs_sharer: bool) -> dict[str, Figures]:
        by_arm: dict[str, list[Answer]] = {}
        for answer in distinct:
            if answer.needs_sharer == needs_sharer:
                by_arm.setdefault(answer.arm, []).append(answer)
        return {
            arm: Figures(
                exact_match=fmean(answer.exact_match for answer in rows),
                f1=fmean(answer.f1 for answer in rows),
                loss=fmean(answer.loss for answer in rows),
                n=len(rows),
            )
            for arm, rows in by_arm.items()
        }

    return Summary(arms=group(True), own_questions=group(False))


def arms_table(summary: Summary, title: str, caption: str | None = None) -> Table:
    """The summary as one table for the terminal."""
    table = Table(title=title, caption=caption)
    for column in ("questions", "arm", "exact match", "F1", "loss (nats)", "n"):
        table.add_column(column, justify="left" if column in ("questions", "arm") else "right")
    for label, group in (("need the sharer", summary["arms"]), ("receiver's own", summary["own_questions"])):
        for arm, row in group.items():
            scores = (f"{row[key]:.3f}" for key in ("exact_match", "f1", "loss"))
            table.add_row(label, arm, *scores, str(row["n"]))
    return table
