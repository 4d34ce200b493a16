"""Two pictures of an evaluation: the arms as bars, and what quality costs in time."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.latency import Latency
from lcf_lightning.evaluation.layer_importance import Point
from lcf_lightning.evaluation.report import ArmFigures
from lcf_lightning.files import write_file

_COLOURS = {"message": "#c0392b", "control": "#95a5a6", "text": "#2c5f8a"}
"""By an arm's family."""


def arms_figure(arms: dict[str, ArmFigures]) -> Figure:
    """Exact match and F1 of every arm, with 95 % intervals; the loss where questions are open-ended."""
    figure = Figure(figsize=(8, 0.5 * len(arms) + 1.6), layout="constrained")
    axes: Axes = figure.subplots()
    scored = all(figures["exact_match"] is not None for figures in arms.values())
    for place, (arm, figures) in enumerate(arms.items()):
        if not scored:
            axes.barh(place, figures["loss"], height=0.7, color=_colour(arm))
        for offset, score, alpha in ((-0.18, figures["exact_match"], 1.0), (0.18, figures["f1"], 0.45)):
            if score is None or not scored:
                continue
            error = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
            axes.barh(
                place + offset, score["value"], height=0.34, color=_colour(arm), alpha=alpha, xerr=error,
                error_kw={"elinewidth": 1, "capsize": 2},
            )  # fmt: skip
            axes.annotate(
                f"{score['value']:.3f}", (score["high"], place + offset), (4, 0), textcoords="offset points",
                va="center", fontsize=7,
            )  # fmt: skip
    axes.set_yticks(range(len(arms)), [find_arm(arm).label for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top
    if scored:
        axes.set_xlim(0, 1.12)
    what = "score" if scored else "loss in nats"
    scores = ": exact match (solid), F1 (pale); 95 % intervals" if scored else ""
    axes.set_xlabel(f"{what} on questions that need the sharer{scores}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def frontier_figure(arms: dict[str, ArmFigures], latency: Latency) -> Figure:
    """Exact match against the time to the first token; the T2T budgets as one curve, with form where that is better."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    scores = {arm: row["exact_match"] for arm, row in arms.items() if row["exact_match"] is not None}
    timed = {arm: latency["arms"][arm]["ttft"] for arm in scores if arm in latency["arms"]}
    shown = dict.fromkeys(timed, "")  # by arm, the one whose score and name are drawn at its time
    for arm in scores:
        shown |= {find_arm(arm).without_form: arm} if find_arm(arm).without_form in timed else {}
    shown = {arm: form if form and scores[form]["value"] > scores[arm]["value"] else arm for arm, form in shown.items()}
    budgets = {arm: find_arm(arm).budget for arm in timed if find_arm(arm).budget}
    texts = sorted(budgets, key=budgets.__getitem__)
    axes.plot(
        [timed[arm]["median"] for arm in texts],
        [scores[shown[arm]]["value"] for arm in texts],
        color=_COLOURS["text"], linewidth=1, zorder=1,
    )  # fmt: skip
    for (arm, ttft), marker in zip(timed.items(), cycle("osD^vPX")):
        score = scores[shown[arm]]
        axes.errorbar(
            ttft["median"], score["value"],
            xerr=[[ttft["median"] - ttft["min"]], [ttft["max"] - ttft["median"]]],
            yerr=[[score["value"] - score["low"]], [score["high"] - score["value"]]],
            fmt="*" if arm == "message" else marker, markersize=12 if arm == "message" else 7, color=_colour(arm),
            markeredgecolor="white", elinewidth=0.8, capsize=2, label=find_arm(shown[arm]).label,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time to first token, ms, prefills included (median, least, greatest; log scale)")
    axes.set_ylabel("exact match, 95 % interval")
    axes.margins(x=0.05, y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def pruning_figure(points: list[Point], kept: list[int]) -> Figure:
    """Exact match and loss against the number of layers kept, with the size of the adapter above."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    left: Axes = figure.subplots()
    right = left.twinx()
    layers = [len(point["layers"]) for point in points]
    left.plot(
        layers,
        [math.nan if point["exact_match"] is None else point["exact_match"] for point in points],
        "o-",
        color=_COLOURS["message"],
        label="exact match",
    )
    right.plot(layers, [point["loss"] for point in points], "s--", color=_COLOURS["text"], label="loss")
    left.axvline(len(kept), color=_COLOURS["control"], linewidth=1)
    left.annotate(
        f" {len(kept)} kept", (len(kept), 1), xycoords=("data", "axes fraction"), va="top", fontsize=8, color="#555555"
    )
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlabel("layers kept, the most important first (0: the receiver alone)")
    left.set_ylabel("exact match, message arm, validation split", color=_COLOURS["message"])
    right.set_ylabel("loss, nats", color=_COLOURS["text"])
    sizes = left.secondary_xaxis("top")
    sizes.set_xticks(
        layers, [f"{point['megabytes']:.{1 if points[-1]['megabytes'] > 10 else 2}f}" for point in points], fontsize=7
    )
    sizes.set_xlabel("adapter, MB")
    for axes in (left, right):
        axes.margins(y=0.1)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_file(path, lambda aside: figure.savefig(aside, dpi=150))


def _colour(arm: str) -> str:
    return _COLOURS[find_arm(arm).family]
