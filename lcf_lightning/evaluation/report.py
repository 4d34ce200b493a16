"""From answers to figures: a summary of a run, and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any, TypedDict

from rich.table import Table

from lcf_lightning.evaluation.arms import Answer, by_arm
from lcf_lightning.evaluation.audit import Audit, audit
from lcf_lightning.evaluation.latency import Latency
from lcf_lightning.evaluation.statistics import Estimate, estimate


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


class ArmFigures(TypedDict):
    """One arm's scores with their 95 % intervals; loss in nats."""

    exact_match: Estimate
    f1: Estimate
    loss: float
    n: int


class Report(TypedDict):
    """All that an evaluation found; ``report.json``.

    Attributes:
        facts: What was evaluated, on what, how.
        arms: Scores on questions that need the sharer.
        own_questions: Scores on questions that the receiver's own passages answer.
        audit: Communication or tuning, over questions that need the sharer.
        latency: Times; null where none were taken.
    """

    facts: dict[str, Any]
    arms: dict[str, ArmFigures]
    own_questions: dict[str, ArmFigures]
    audit: Audit
    latency: Latency | None


def build_report(answers: Iterable[Answer], latency: Latency | None, facts: dict[str, Any]) -> Report:
    """The report of some answers; an example that occurs twice counts once."""
    answers = list(answers)

    def group(needs_sharer: bool) -> dict[str, ArmFigures]:
        return {
            arm: ArmFigures(
                exact_match=estimate([answer.exact_match for answer in rows.values()]),
                f1=estimate([answer.f1 for answer in rows.values()]),
                loss=fmean(answer.loss for answer in rows.values()),
                n=len(rows),
            )
            for arm, rows in by_arm(answers, needs_sharer).items()
        }

    return Report(facts=facts, arms=group(True), own_questions=group(False), audit=audit(answers), latency=latency)


def summarise(answers: Iterable[Answer]) -> Summary:
    """Figures per arm; an example that occurs twice (a sampler's padding) counts once."""
    answers = list(answers)

    def group(needs_sharer: bool) -> dict[str, Figures]:
        return {
            arm: Figures(
                exact_match=fmean(answer.exact_match for answer in rows.values()),
                f1=fmean(answer.f1 for answer in rows.values()),
                loss=fmean(answer.loss for answer in rows.values()),
                n=len(rows),
            )
            for arm, rows in by_arm(answers, needs_sharer).items()
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
