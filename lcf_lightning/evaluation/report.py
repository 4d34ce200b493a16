"""From answers to figures: a summary of a run, and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any, TypedDict

from rich.table import Table

from lcf_lightning.evaluation.audit import Audit, audit
from lcf_lightning.evaluation.latency import Latency
from lcf_lightning.evaluation.layer_importance import Pruning
from lcf_lightning.evaluation.prediction import Prediction, by_arm
from lcf_lightning.evaluation.statistics import Comparison, Estimate, estimate, format_estimate


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
        arms: Scores on questions that need the sharer; over several benchmarks the average weighted by their sizes.
        benchmarks: The same for each benchmark, where there are several.
        optimal_routing: How often the sharer alone or the receiver alone is right: what one would reach who always
            asked the right one. Under ``all`` and each benchmark; empty where one of the two arms was not run.
        own_questions: Scores on questions that the receiver's own passages answer.
        audit: Communication or tuning, over questions that need the sharer.
        latency: Times; null where none were taken.
    """

    facts: dict[str, Any]
    arms: dict[str, ArmFigures]
    benchmarks: dict[str, dict[str, ArmFigures]]
    optimal_routing: dict[str, Estimate]
    own_questions: dict[str, ArmFigures]
    audit: Audit
    latency: Latency | None


def build_report(answers: Iterable[Prediction], latency: Latency | None, facts: dict[str, Any]) -> Report:
    """The report of some answers; an example that occurs twice counts once."""
    answers = list(answers)
    names = sorted({answer.benchmark for answer in answers} - {""})
    benchmarks = {name: [answer for answer in answers if answer.benchmark == name] for name in names}
    routing = {name: _optimal_routing(rows) for name, rows in {"all": answers, **benchmarks}.items()}
    return Report(
        facts=facts,
        arms=_figures(answers, needs_sharer=True),
        benchmarks={name: _figures(rows, needs_sharer=True) for name, rows in benchmarks.items()},
        optimal_routing={name: rate for name, rate in routing.items() if rate is not None},
        own_questions=_figures(answers, needs_sharer=False),
        audit=audit(answers),
        latency=latency,
    )


def _figures(answers: list[Prediction], needs_sharer: bool) -> dict[str, ArmFigures]:
    return {
        arm: ArmFigures(
            exact_match=estimate([answer.exact_match for answer in rows.values()]),
            f1=estimate([answer.f1 for answer in rows.values()]),
            loss=fmean(answer.loss for answer in rows.values()),
            n=len(rows),
        )
        for arm, rows in by_arm(answers, needs_sharer).items()
    }


def _optimal_routing(answers: list[Prediction]) -> Estimate | None:
    """How often one of the two models alone is right; None if there is no example that both have answered."""
    arms = by_arm(answers, needs_sharer=True)
    sharer, receiver = arms.get("sharer_alone", {}), arms.get("own_context", {})
    right = [max(sharer[id].exact_match, receiver[id].exact_match) for id in sharer if id in receiver]
    return estimate(right) if right else None


def summarise(answers: Iterable[Prediction]) -> Summary:
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


def comparison_table(comparisons: dict[str, Comparison], first: str, second: str, arm: str) -> Table:
    """Two evaluations against each other, as one table for the terminal."""
    table = Table(title=f"{arm}: {first} against {second}", caption="McNemar: exact, one-sided; is the first better?")
    for column in ("questions", "n", "difference", "only first right", "only second right", "McNemar p"):
        table.add_column(column, justify="left" if column == "questions" else "right")
    for name, row in comparisons.items():
        counts = (str(row[key]) for key in ("only_first", "only_second"))
        table.add_row(
            name, str(row["n"]), format_estimate(row["gain"], signed=True), *counts, f"{row['mcnemar_p']:.2g}"
        )
    return table


def pruning_table(pruning: Pruning, caption: str) -> Table:
    """Scores against the number of layers kept, as one table for the terminal."""
    table = Table(title="message arm, validation split", caption=caption)
    for column in ("layers", "MB", "exact match", "loss (nats)", "n"):
        table.add_column(column, justify="right")
    for point in pruning["curve"]:
        mark = " ←" if point["layers"] == pruning["kept"] else ""
        scores = (f"{point['megabytes']:.2f}", f"{point['exact_match']:.3f}", f"{point['loss']:.3f}")
        table.add_row(f"{len(point['layers'])}{mark}", *scores, str(point["n"]))
    return table
