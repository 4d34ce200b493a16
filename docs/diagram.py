"""Draws docs/channel.svg: the three ways in which a sharer's cache reaches a receiver.

python docs/diagram.py docs/channel.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

SHARER, RECEIVER, ADAPTER, INK = "#2b6cb0", "#2f855a", "#c05621", "#1a202c"
SPANS = ("#90cdf4", "#63b3ed", "#3182ce")
OWN, EDIT = "#9ae6b4", "#f6ad55"
READ = (SPANS[0],) * 3 + (SPANS[1],) * 4 + (SPANS[2],) * 2
"""The tokens that the sharer has read, in three spans."""
CELL, HEIGHT = 0.17, 0.62


def note(axes: Axes, x: float, y: float, text: str, color: str = INK, size: float = 9, **options: str) -> None:
    """Text around a point."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": color, "fontsize": size, **options})


def cells(axes: Axes, x: float, y: float, colors: Sequence[str], height: float = HEIGHT) -> float:
    """A cache: a column for each token, over all layers. Returns where it ends."""
    for place, color in enumerate(colors):
        axes.add_patch(Rectangle((x + CELL * place, y), CELL - 0.02, height, facecolor=color, edgecolor="none"))
    return x + CELL * len(colors)


def arrow(axes: Axes, start: float, end: float, y: float) -> None:
    """What becomes of what, from left to right."""
    axes.add_patch(FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=10, color=INK, lw=1.1))


def box(axes: Axes, x: float, y: float, text: str) -> None:
    """A part of the adapter."""
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((x, y), 1.15, HEIGHT, boxstyle=style, facecolor="white", edgecolor=ADAPTER, lw=1.5))
    note(axes, x + 0.575, y + HEIGHT / 2, text, ADAPTER)


def row(axes: Axes, y: float, title: str, what: str, sent: Sequence[str], says: str, before: Sequence[str]) -> None:
    """One way: the sharer's cache, what travels, the fuser, the receiver's cache, and the answer."""
    middle, read = y + HEIGHT / 2, sent if len(sent) > 3 else READ
    note(axes, 0.1, middle + 0.16, title, size=10, ha="left", weight="bold")
    note(axes, 0.1, middle - 0.18, what, size=8.5, ha="left")
    arrow(axes, cells(axes, 2.55, y, read) + 0.03, 4.55, middle)
    end = cells(axes, 4.65, y, sent)
    style = "round,pad=0.05,rounding_size=0.1"
    axes.add_patch(
        FancyBboxPatch((4.63, y), end - 4.63, HEIGHT, boxstyle=style, facecolor="none", edgecolor=INK, ls="--")
    )
    note(axes, 4.65, y - 0.22, says, size=8.5, ha="left")
    arrow(axes, end + 0.1, 6.65, middle)
    box(axes, 6.7, y, "fuser")
    arrow(axes, 7.87, 8.15, middle)
    own = cells(axes, 8.25, y, before)
    end = cells(axes, own, y, (OWN,) * 7)
    if not before:
        cells(axes, own, y, (EDIT,) * 7, 0.24)
    arrow(axes, end + 0.03, end + 0.3, middle)
    note(axes, end + 0.35, middle, "answer", RECEIVER, 9.5, ha="left")


def draw() -> Figure:
    """The whole picture."""
    figure = Figure(figsize=(10.6, 4.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10.9), ylim=(-0.15, 4.75))
    axes.axis("off")
    for x, text, color in (
        (3.3, "KV cache of the sharer\n(frozen); spans in shades", SHARER),
        (5.4, "message\n(a file, HTTP …)", INK),
        (7.28, "adapter\n(trained)", ADAPTER),
        (9.15, "KV cache of the receiver\n(frozen)", RECEIVER),
    ):
        note(axes, x, 4.4, text, color, 9.5)
    row(
        axes, 3.1, "LCF, C2C", "both read the same text\n(pooler: null)", (SPANS[1],) * 7,
        "one token for each of the receiver's", (),
    )  # fmt: skip
    row(
        axes, 1.7, "LCF-X", "they read different texts\n(pooler: span)", SPANS,
        "each span one vector; in the end one for all", (),
    )  # fmt: skip
    row(
        axes, 0.3, "prefix, carry", "they read different texts\n(pooler: prefix, carry)", SPANS,
        "each span one token; carry: all its tokens", (EDIT,) * 3,
    )  # fmt: skip
    for y, text in (
        (2.88, "its own tokens are edited: $R + g\\,α ⊙ Δ$"),
        (1.48, "its own tokens are edited"),
        (0.08, "new tokens before its own"),
    ):
        note(axes, 8.25, y, text, ADAPTER, 8.5, ha="left")
    return figure


def main() -> None:
    """Write the picture to the file that is named, as its suffix says."""
    with matplotlib.rc_context({"svg.hashsalt": "lcf", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        draw().savefig(Path(sys.argv[1]), metadata={"Date": None} if sys.argv[1].endswith(".svg") else None, dpi=80)


if __name__ == "__main__":
    main()
