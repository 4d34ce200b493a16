"""From answers to figures: a summary of a run, and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any, TypedDict

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.audit import Audit, audit
from lcf_lightning.evaluation.latency import Latency
from lcf_lightning.evaluation.nulls import Guess, guess
from lcf_lightning.evaluation.prediction import Prediction, by_arm, columns
from lcf_lightning.evaluation.statistics import Estimate, rate
from lcf_lightning.evaluation.verdict import Verdict, judge


class Figures(TypedDict):
    """One arm's scores: means over ``n`` distinct examples; loss in nats, of all.

    Open-ended questions have no other score; ``n`` counts those that have, or all where none has.
    """

    exact_match: float | None
    f1: float | None
    loss: float
    n: int


class Summary(TypedDict):
    """Figures per arm, for questions that need the sharer and for those the receiver can answer alone."""

    arms: dict[str, Figures]
    own_questions: dict[str, Figures]


class ArmFigures(TypedDict):
    """One arm's scores with their 95 % intervals; otherwise as `Figures`."""

    exact_match: Estimate | None
    f1: Estimate | None
    loss: float
    n: int


class Texts(TypedDict):
    """What the sharer wrote under one arm: ``n`` texts, and the share of them that the budget cut off."""

    budget: int
    cut: Estimate
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
        guesses: What one reaches who has read nothing, on questions that need the sharer; under ``all`` and each
            benchmark, where answers are not open-ended.
        texts: By T2T arm, what became of the budget.
        audit: Communication or tuning, over questions that need the sharer.
        verdict: What that comes to; null where it cannot be told.
        latency: Times; null where none were taken.
    """

    facts: dict[str, Any]
    arms: dict[str, ArmFigures]
    benchmarks: dict[str, dict[str, ArmFigures]]
    optimal_routing: dict[str, Estimate]
    own_questions: dict[str, ArmFigures]
    guesses: dict[str, Guess]
    texts: dict[str, Texts]
    audit: Audit
    verdict: Verdict | None
    latency: Latency | None


def build_report(answers: Iterable[Prediction], latency: Latency | None, facts: dict[str, Any]) -> Report:
    """The report of some answers; an example that occurs twice counts once."""
    answers = list(answers)
    names = sorted({answer.benchmark for answer in answers} - {""})
    benchmarks = {name: [answer for answer in answers if answer.benchmark == name] for name in names}
    groups = {"all": answers, **benchmarks}
    routing = {name: _optimal_routing(rows) for name, rows in groups.items()}
    guesses = {name: _guess(rows) for name, rows in groups.items()}
    return Report(
        facts=facts,
        arms=_figures(answers, needs_sharer=True),
        benchmarks={name: _figures(rows, needs_sharer=True) for name, rows in benchmarks.items()},
        optimal_routing={name: found for name, found in routing.items() if found is not None},
        own_questions=_figures(answers, needs_sharer=False),
        guesses={name: found for name, found in guesses.items() if found is not None},
        texts=_texts(answers),
        audit=audit(answers),
        verdict=judge(answers),
        latency=latency,
    )


def _scores(
    answers: list[Prediction], needs_sharer: bool
) -> Iterator[tuple[str, list[float], list[float], float, int]]:
    """Of each arm the scores of exact match and F1, the mean loss, and n."""
    for arm, rows in by_arm(answers, needs_sharer).items():
        exact, f1, losses = columns(rows.values())
        yield arm, exact, f1, fmean(losses), len(exact) or len(rows)


def _figures(answers: list[Prediction], needs_sharer: bool) -> dict[str, ArmFigures]:
    return {
        arm: ArmFigures(exact_match=rate(exact) if exact else None, f1=rate(f1) if f1 else None, loss=loss, n=n)
        for arm, exact, f1, loss, n in _scores(answers, needs_sharer)
    }


def _guess(answers: list[Prediction]) -> Guess | None:
    """Of the questions that need the sharer, whatever the arm."""
    questions = {id: row for rows in by_arm(answers, needs_sharer=True).values() for id, row in rows.items()}
    return guess(list(questions.values()))


def _texts(answers: list[Prediction]) -> dict[str, Texts]:
    """Of all questions, under the arms whose receiver gets the text and no message."""
    found: dict[str, dict[str, bool]] = {}
    for row in answers:
        if row.text_cut is not None and not find_arm(row.arm).without_form:
            found.setdefault(row.arm, {})[row.id] = row.text_cut
    return {
        arm: Texts(budget=find_arm(arm).budget, cut=rate(list(map(float, cut.values()))), n=len(cut))
        for arm, cut in found.items()
    }


def _optimal_routing(answers: list[Prediction]) -> Estimate | None:
    """How often one of the two models alone is right; None if there is no example that both have answered."""
    arms = by_arm(answers, needs_sharer=True)
    sharer, receiver = arms.get("sharer_alone", {}), arms.get("own_context", {})
    pairs = [(sharer[id].exact_match, receiver[id].exact_match) for id in sharer if id in receiver]
    right = [max(one, other) for one, other in pairs if one is not None and other is not None]
    return rate(right) if right else None


def summarise(answers: Iterable[Prediction]) -> Summary:
    """Figures per arm; an example that occurs twice (a sampler's padding) counts once."""
    answers = list(answers)

    def group(needs_sharer: bool) -> dict[str, Figures]:
        return {
            arm: Figures(exact_match=fmean(exact) if exact else None, f1=fmean(f1) if f1 else None, loss=loss, n=n)
            for arm, exact, f1, loss, n in _scores(answers, needs_sharer)
        }

    return Summary(arms=group(True), own_questions=group(False))
