"""The pictures of an evaluation: the arms as bars, what quality costs in time, and what each layer is worth.

Each is made to be read at the 850 pixels that a page of GitHub is wide.
"""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.layer_importance import Point
from lcf_lightning.evaluation.report import ArmFigures, Report
from lcf_lightning.evaluation.statistics import Estimate, rate
from lcf_lightning.files import write_file

_COLOURS = {"message": "#c0392b", "control": "#95a5a6", "text": "#2c5f8a"}
"""By an arm's family."""
_ALIKE = 0.005
"""Where F1 is nowhere further from exact match, it is left out."""
_FAMILIES = {"message": "this example's message", "control": "control: another message", "text": "no message"}
_CHANCE: dict[str, Any] = {"color": "#555555", "linewidth": 1, "linestyle": "--"}


def arms_figure(report: Report) -> Figure:
    """Exact match of every arm and, where it says more, F1, with 95 % intervals; the loss where there is neither.

    Texts of several budgets that are answered alike are one bar.
    """
    arms = _without_duplicates(report["arms"])
    figures = [report["arms"][arm] for arm in arms]
    scores = {"exact match": [row["exact_match"] for row in figures], "F1": [row["f1"] for row in figures]}
    scores = {name: found for name, found in scores.items() if None not in found}
    exact, f1 = (_values(scores.get(name, [])) for name in ("exact match", "F1"))
    if len(exact) == len(f1) and np.allclose(exact, f1, rtol=0, atol=_ALIKE):
        scores.pop("F1", None)
    figure = Figure(figsize=(8, 0.3 * len(arms) + 2.1), layout="constrained")
    panels = figure.subplots(1, len(scores) or 1, sharey=True, squeeze=False)[0]
    for panel, (name, found) in zip(panels, scores.items(), strict=False):
        _bars(panel, list(arms), [score for score in found if score is not None])
        panel.set_xlim(0, 1.14)
        panel.set_xlabel(f"{name}, 95 % interval")
    if not scores:
        panels[0].barh(range(len(arms)), [row["loss"] for row in figures], color=[_colour(arm) for arm in arms])
        panels[0].set_xlabel("loss in nats (less is better)")
    chance = _chance(report) if scores else None
    if chance is not None:
        panels[0].axvline(chance[0], label=chance[1], zorder=0, **_CHANCE)
    panels[0].set_yticks(range(len(arms)), list(arms.values()))
    panels[0].set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top
    figure.suptitle(_title("Questions that need the sharer, by what the receiver has", report), fontsize=10)
    _legend(figure, panels[0], list(arms))
    return figure


def frontier_figure(report: Report) -> Figure:
    """Exact match against the time to the first token; the T2T budgets as one curve, with form where that is better."""
    latency = report["latency"]
    assert latency is not None
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    names = _without_duplicates(report["arms"])
    scores = {arm: row["exact_match"] for arm, row in report["arms"].items() if row["exact_match"] is not None}
    timed = {arm: latency["arms"][arm]["ttft"] for arm in scores if arm in latency["arms"] and arm in names}
    shown = dict.fromkeys(timed, "")  # by arm, the one whose score and name are drawn at its time
    for arm in (arm for arm in scores if arm in names):
        shown |= {find_arm(arm).without_form: arm} if find_arm(arm).without_form in timed else {}
    shown = {arm: form if form and scores[form]["value"] > scores[arm]["value"] else arm for arm, form in shown.items()}
    texts = sorted((arm for arm in timed if find_arm(arm).budget), key=lambda arm: find_arm(arm).budget)
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
            markeredgecolor="white", elinewidth=0.8, capsize=2, label=names[shown[arm]],
        )  # fmt: skip
    if (chance := _chance(report)) is not None:
        axes.axhline(chance[0], label=chance[1], zorder=0, **_CHANCE)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time to first token, ms: median, least, greatest (log scale)")
    axes.set_ylabel("exact match, 95 % interval")
    axes.margins(x=0.05, y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title("What an answer costs in time: up and to the left is better", report), fontsize=10)
    lines, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] not in names.values())  # the line of chance last
    figure.legend(
        [lines[place] for place in order], [labels[place] for place in order], loc="outside right center",
        frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def pruning_figure(points: list[Point], kept: list[int]) -> Figure:
    """Exact match and loss against the number of layers kept, a panel each; the size of the adapter below."""
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    scored = all(point["exact_match"] is not None for point in points)
    panels: list[Axes] = list(figure.subplots(2 if scored else 1, 1, sharex=True, squeeze=False)[:, 0])
    layers = [len(point["layers"]) for point in points]
    if scored:
        found = [
            rate([1] * (right := round((p["exact_match"] or 0) * p["n"])) + [0] * (p["n"] - right)) for p in points
        ]
        error = [[s["value"] - s["low"] for s in found], [s["high"] - s["value"] for s in found]]
        panels[0].errorbar(
            layers, [s["value"] for s in found], error, fmt="o-", color=_COLOURS["message"], elinewidth=0.8, capsize=2,
            label="message arm",
        )  # fmt: skip
        panels[0].set_ylabel("exact match,\n95 % interval")
        if 0 in layers:
            alone = found[layers.index(0)]["value"]
            panels[0].axhline(alone, label=f"receiver alone, {alone:.3f}", zorder=0, **_CHANCE)
    panels[-1].plot(layers, [point["loss"] for point in points], "s-", color=_COLOURS["text"])
    panels[-1].set_ylabel("loss, nats")
    for panel in panels:
        panel.axvline(len(kept), color=_COLOURS["control"], linewidth=1, zorder=0, label=f"kept: {len(kept)}")
        panel.margins(y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    digits = 1 if points[-1]["megabytes"] > 10 else 2
    panels[-1].set_xticks(
        layers,
        [f"{count}\n{point['megabytes']:.{digits}f}" for count, point in zip(layers, points, strict=True)],
        fontsize=8,
    )
    panels[-1].set_xlabel("layers kept, the most important first; below, megabytes of the adapter")
    figure.suptitle(f"Fewer layers, smaller adapter: validation split, n = {points[0]['n']}", fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_file(path, lambda aside: figure.savefig(aside, dpi=150))


def _without_duplicates(arms: dict[str, ArmFigures]) -> dict[str, str]:
    """The arms to draw, with their labels: texts of several budgets that have the same scores are one."""
    alike: dict[object, list[str]] = {}
    for arm, row in arms.items():
        budget = find_arm(arm).budget
        scores = tuple(_values([row["exact_match"], row["f1"]])) if budget else arm
        alike.setdefault((bool(find_arm(arm).without_form), scores), []).append(arm)
    labels = {}
    for group in alike.values():
        first, last = find_arm(group[0]), find_arm(group[-1])
        several = first.label.replace(str(first.budget), f"{first.budget} … {last.budget}", 1)
        labels[group[0]] = several if len(group) > 1 else first.label
    return {arm: labels[arm] for arm in arms if arm in labels}


def _bars(panel: Axes, arms: list[str], scores: list[Estimate]) -> None:
    error = [[score["value"] - score["low"] for score in scores], [score["high"] - score["value"] for score in scores]]
    panel.barh(
        range(len(arms)), _values(scores), color=[_colour(arm) for arm in arms], height=0.7, xerr=error,
        error_kw={"elinewidth": 1, "capsize": 2},
    )  # fmt: skip
    for place, score in enumerate(scores):
        panel.annotate(
            f"{score['value']:.3f}", (score["high"], place), (4, 0), textcoords="offset points", va="center",
            fontsize=7,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip
    panel.spines[["top", "right"]].set_visible(False)


def _values(scores: list[Estimate] | list[Estimate | None]) -> list[float]:
    return [math.nan if score is None else score["value"] for score in scores]


def _chance(report: Report) -> tuple[float, str] | None:
    """What one reaches who has read nothing, and what to call it."""
    found = (report["guesses"] or {}).get("all")
    if found is None:
        return None
    if found["chance"] is not None:
        return found["chance"], f"a choice at random, {found['chance']:.3f}"
    return found["majority"]["value"], f"the most frequent answer, {found['majority']['value']:.3f}"


def _title(what: str, report: Report) -> str:
    """What is drawn, and of which data, models and number of questions."""
    facts = report["facts"]
    n = max((row["n"] for row in report["arms"].values()), default=0)
    pair = [Path(facts[role]).name.removesuffix(".gguf") for role in ("sharer", "receiver") if role in facts]
    known = [str(facts.get("source", "")).partition(" (")[0], " → ".join(pair), f"n = {n}"]
    return f"{what}\n{fill(', '.join(filter(None, known)), 100)}"


def _legend(figure: Figure, panel: Axes, arms: list[str]) -> None:
    """Below the panels: whose bars have which colour, and the line."""
    families = dict.fromkeys(find_arm(arm).family for arm in arms)
    patches = [Patch(color=_COLOURS[name], label=_FAMILIES[name]) for name in families]
    figure.legend(
        handles=[*patches, *panel.get_legend_handles_labels()[0][: len(panel.get_lines())]],
        loc="outside lower center", ncols=2, frameon=False, fontsize=8,
    )  # fmt: skip


def _colour(arm: str) -> str:
    return _COLOURS[find_arm(arm).family]
