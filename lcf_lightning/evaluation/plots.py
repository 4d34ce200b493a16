"""Two pictures of an evaluation: the arms as bars, and what quality costs in time."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lcf_lightning.evaluation.arms import label, text_budget
from lcf_lightning.evaluation.latency import Latency
from lcf_lightning.evaluation.report import ArmFigures
from lcf_lightning.files import write_file

_ACCENT, _CONTROL, _TEXT = "#c0392b", "#95a5a6", "#2c5f8a"
_CONTROLS = ("mismatched", "zero", "self", "noise")


def arms_figure(arms: dict[str, ArmFigures]) -> Figure:
    """Exact match and F1 of every arm, with 95 % intervals."""
    figure = Figure(figsize=(8, 0.5 * len(arms) + 1.6), layout="constrained")
    axes: Axes = figure.subplots()
    for place, (arm, figures) in enumerate(arms.items()):
        for offset, name, alpha in ((-0.18, "exact_match", 1.0), (0.18, "f1", 0.45)):
            score = figures[name]  # type: ignore[literal-required]
            error = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
            axes.barh(
                place + offset, score["value"], height=0.34, color=_colour(arm), alpha=alpha, xerr=error,
                error_kw={"elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            axes.annotate(
                f"{score['value']:.3f}", (score["high"], place + offset), (4, 0), textcoords="offset points",
                va="center", fontsize=7,
            )  # fmt: skip
    axes.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("score on questions that need the sharer: exact match (solid), F1 (pale); 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def frontier_figure(arms: dict[str, ArmFigures], latency: Latency) -> Figure:
    """Exact match against the time to the first token; the T2T budgets as one curve."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    timed = {arm: latency["arms"][arm]["ttft"] for arm in arms if arm in latency["arms"]}
    texts = sorted((arm for arm in timed if text_budget(arm)), key=text_budget)
    axes.plot(
        [timed[arm]["median"] for arm in texts],
        [arms[arm]["exact_match"]["value"] for arm in texts],
        color=_TEXT, linewidth=1, zorder=1,
    )  # fmt: skip
    for arm, ttft in timed.items():
        score = arms[arm]["exact_match"]
        axes.errorbar(
            ttft["median"], score["value"],
            xerr=[[ttft["median"] - ttft["min"]], [ttft["max"] - ttft["median"]]],
            yerr=[[score["value"] - score["low"]], [score["high"] - score["value"]]],
            fmt="o", markersize=5, color=_colour(arm), elinewidth=0.8, capsize=2, label=label(arm),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("time to first token, ms, both prefills included (median, least and greatest; log scale)")
    axes.set_ylabel("exact match, 95 % interval")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    _annotate(axes, {arm: (timed[arm]["median"], arms[arm]["exact_match"]["value"]) for arm in timed})
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_file(path, lambda aside: figure.savefig(aside, dpi=150))


def _annotate(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Name the points, those of one height above and below in turn so that names do not meet."""
    for place, (arm, point) in enumerate(sorted(points.items(), key=lambda item: item[1])):
        offset = (0, 8) if place % 2 == 0 else (0, -14)
        axes.annotate(
            label(arm), point, offset, textcoords="offset points", ha="center", fontsize=8, color=_colour(arm)
        )


def _colour(arm: str) -> str:
    if arm == "message":
        return _ACCENT
    return _CONTROL if arm in _CONTROLS else _TEXT
