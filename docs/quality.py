"""Draws docs/quality.svg: what answers are worth by what the receiver has, and how soon they come.

python docs/quality.py docs/quality.svg

From the reports and times in docs/evaluations/natural_text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEPT = Path(__file__).parent / "evaluations" / "natural_text"
MESSAGE, TEXT, ALONE = "#c0392b", "#2c5f8a", "#7f8c8d"


class Way(NamedTuple):
    """One way to tell the receiver.

    Attributes:
        label: What it is called.
        colour: By what is sent.
        report: The folder of its report.
        arm: The arm in it.
        cost: Its times and bytes in times.json; null where none were measured.
    """

    label: str
    colour: str
    report: str
    arm: str
    cost: str | None = None


WAYS = (
    Way("both paragraphs as text", ALONE, "carry_reread_200_steps", "full_context", "full_context"),
    Way("a text by the sharer", TEXT, "carry_reread_200_steps", "t2t_200", "t2t_200"),
    Way("its own paragraph alone", ALONE, "carry_reread_200_steps", "own_context"),
    Way("a message of another text", ALONE, "carry_reread_400_steps", "other_text"),
    Way("a message: LCF-X, the paper's", MESSAGE, "lcf_x", "message"),
    Way("a message: carry", MESSAGE, "carry_reread_400_steps", "message", "message"),
)


def scores(way: Way) -> dict[str, float]:
    """F1 and its interval."""
    report = json.loads((KEPT / way.report / "report.json").read_text())
    found: dict[str, float] = report["arms"][way.arm]["f1"]
    return found


def bars(axes: Axes) -> None:
    """F1 of every way, with intervals."""
    ranked = sorted(WAYS, key=lambda way: scores(way)["value"])
    for place, way in enumerate(ranked):
        score = scores(way)
        error = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
        axes.barh(place, score["value"], color=way.colour, height=0.62, xerr=error, error_kw={"lw": 0.9, "capsize": 2})
        axes.text(0.012, place, f"{score['value']:.2f}", va="center", color="white", fontsize=8, fontweight="bold")
    axes.set_yticks(range(len(ranked)), [way.label for way in ranked], fontsize=8.5)
    axes.set_xlabel("F1 of the answers, 95 % interval")
    axes.set_title("What the receiver answers from", fontsize=10, loc="left")
    axes.tick_params(left=False)


def seconds(axes: Axes) -> None:
    """F1 against the time to the first token, and the bytes that were sent."""
    times: dict[str, Any] = json.loads((KEPT / "times.json").read_text())
    for way in (way for way in WAYS if way.cost):
        cost, score = times[way.cost or ""], scores(way)
        at = cost["seconds"][0]
        error = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
        axes.errorbar(at, score["value"], error, fmt="o", color=way.colour, markersize=7, elinewidth=0.9, capsize=2)
        sent = f", {cost['bytes']:,} bytes" if "bytes" in cost else ""
        label = f"{way.label.removeprefix('a message: ')}{sent}"
        axes.annotate(label, (at, score["value"]), (8, 5), textcoords="offset points", fontsize=8.5, color=way.colour)
    axes.set(xlim=(0, 12), ylim=(0.2, 0.75), xlabel="seconds to the first token, two CPU cores", ylabel="F1")
    axes.set_title("… and how soon", fontsize=10, loc="left")


def draw() -> Figure:
    """Both panels."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    bars(left)
    seconds(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Draw into the file that the command line names."""
    with rc_context({"svg.hashsalt": "quality", "svg.fonttype": "none"}):  # the same figures draw the same picture
        draw().savefig(sys.argv[1], metadata={"Date": None} if sys.argv[1].endswith("svg") else None)


if __name__ == "__main__":
    main()
