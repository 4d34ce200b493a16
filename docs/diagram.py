"""Draws docs/channel.svg, the picture of the channel.

python docs/diagram.py docs/channel.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

SHARER, RECEIVER, ADAPTER, INK = "#2b6cb0", "#2f855a", "#c05621", "#1a202c"
SPANS = ("#90cdf4", "#63b3ed", "#4299e1")
OWN, EDIT = "#9ae6b4", "#f6ad55"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rounded box with a title in it."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="white", edgecolor=color, lw=1.6))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=color, fontsize=10)


def cells(axes: Axes, x: float, y: float, colors: tuple[str, ...], height: float = 0.9) -> None:
    """A cache: a column for each token, over all layers."""
    for place, color in enumerate(colors):
        axes.add_patch(Rectangle((x + 0.2 * place, y), 0.18, height, facecolor=color, edgecolor="white", lw=0.5))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    """What becomes of what."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, lw=1.2))


def note(axes: Axes, x: float, y: float, text: str, color: str = INK, size: float = 8.5) -> None:
    """Text around a point."""
    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=size)


def sharer(axes: Axes) -> None:
    """What the sharer reads, its cache in spans, and a summary of each."""
    note(axes, 1.5, 4.55, "what the sharer has read\n(the receiver has not)")
    arrow(axes, (1.5, 4.25), (1.5, 3.95))
    box(axes, 0.5, 3.3, 2.0, 0.6, "sharer (frozen)", SHARER)
    arrow(axes, (1.5, 3.3), (1.5, 2.95))
    cells(axes, 0.6, 1.95, (SPANS[0],) * 3 + (SPANS[1],) * 4 + (SPANS[2],) * 2)
    note(axes, 1.5, 1.72, "its KV cache, keys un-rotated; spans in shades", SHARER)
    for start, end, color in ((0.89, 3.62, SPANS[0]), (1.58, 3.82, SPANS[1]), (2.2, 4.02, SPANS[2])):
        arrow(axes, (start + 0.1, 1.55), (end, 0.95), color)
    cells(axes, 3.55, 0.3, SPANS, 0.6)
    note(axes, 1.75, 0.75, "attention within each span\n(one learned query a layer and head)", ADAPTER)


def wire(axes: Axes) -> None:
    """The message on its way, beside others."""
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((3.4, 0.15), 0.9, 0.9, boxstyle=style, facecolor="none", edgecolor=INK, ls="--"))
    note(axes, 3.85, 1.22, "message", INK, 9.5)
    note(axes, 3.85, -0.05, "safetensors + JSON\nheader, digest, HMAC", INK, 7.5)
    arrow(axes, (4.35, 0.6), (5.35, 0.6))
    note(axes, 4.85, 0.78, "file, HTTP …", INK, 7.5)
    note(axes, 4.85, 0.3, "+ messages of\nother sharers", INK, 7.5)


def receiver(axes: Axes) -> None:
    """One message, fused into the receiver's cache, and the answer."""
    box(axes, 5.4, 0.3, 1.5, 0.6, "attention\nover all spans", ADAPTER)
    arrow(axes, (6.15, 0.9), (6.15, 1.85), ADAPTER)
    note(axes, 8.9, 4.55, "the receiver's own prompt")
    arrow(axes, (8.9, 4.35), (8.9, 3.95))
    box(axes, 7.9, 3.3, 2.0, 0.6, "receiver (frozen)", RECEIVER)
    arrow(axes, (8.9, 3.3), (8.9, 2.95))
    cells(axes, 8.2, 1.95, (OWN,) * 7)
    note(axes, 8.9, 1.72, "its KV cache", RECEIVER)
    box(axes, 5.4, 1.9, 1.5, 1.0, "fuser\n$R + g\\,α ⊙ Δ$", ADAPTER)
    arrow(axes, (8.1, 2.55), (6.95, 2.55))
    arrow(axes, (6.95, 2.2), (8.1, 2.2), EDIT)
    cells(axes, 8.2, 1.95, (EDIT,) * 7, 0.3)
    arrow(axes, (8.9, 1.55), (8.9, 0.95))
    box(axes, 7.9, 0.3, 2.0, 0.6, "answer: tea", RECEIVER)
    note(axes, 6.15, 3.15, "for each layer", ADAPTER)


def draw() -> Figure:
    """The whole picture."""
    figure = Figure(figsize=(10.4, 5.0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10.4), ylim=(-0.35, 4.95))
    axes.axis("off")
    axes.axvline(4.85, 0.28, 0.97, color=INK, lw=0.8, ls=":")
    note(axes, 4.0, 4.7, "machine of the sharer", INK, 8)
    note(axes, 5.75, 4.7, "machine of the receiver", INK, 8)
    for part in (sharer, wire, receiver):
        part(axes)
    return figure


def main() -> None:
    """Write the picture to the file that is named, as its suffix says."""
    with matplotlib.rc_context({"svg.hashsalt": "lcf", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        draw().savefig(Path(sys.argv[1]), metadata={"Date": None} if sys.argv[1].endswith(".svg") else None, dpi=110)


if __name__ == "__main__":
    main()
