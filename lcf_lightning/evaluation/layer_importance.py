"""Which layers of an adapter matter, measured on held-out data (arXiv 2605.22863, pruning)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TypedDict

import torch

from lcf_lightning.adapter.subset import keep_layers, open_layers
from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.prediction import Prediction, answer_losses, answer_reading, columns
from lcf_lightning.evaluation.ranks import gathered
from lcf_lightning.link import Link
from lcf_lightning.models.geometry import KV
from lcf_lightning.writer import Writer


class Point(TypedDict):
    """The adapter with only some of its layers.

    Attributes:
        layers: The receiver layers kept.
        exact_match: Of the message arm, on the held-out examples; null where these are open-ended.
        loss: Likewise, in nats.
        n: Examples.
        megabytes: Size of the tensors, in millions of bytes.
    """

    layers: list[int]
    exact_match: float | None
    loss: float
    n: int
    megabytes: float


class Pruning(TypedDict):
    """What pruning an adapter found.

    Attributes:
        closed: Layers whose gates are closed: they do nothing, or, with ``pooler=prefix``, hold zero tokens.
        importance: Per open layer, by how much the loss rises without it, in nats; a negative one helps by its absence.
        kept: The layers to keep.
        curve: From no layer to every open one, the most important first.
    """

    closed: list[int]
    importance: dict[int, float]
    kept: list[int]
    curve: list[Point]


@torch.no_grad()
def rank_layers(link: Link, writer: Writer, batches: Iterable[Batch]) -> dict[int, float]:
    """Importance of every open layer: mean answer loss without it, less that with all, in nats.

    Each rank gives batches of its own; all get the importance on all of them.
    """
    layers = open_layers(link.adapter)
    with_all: list[float] = []
    without: dict[int, list[float]] = {layer: [] for layer in layers}
    for batch in batches:
        edits = _Edits(link, writer, batch)
        with_all += answer_losses(link, edits.reading(layers), edits.caches.batch).tolist()
        for layer in layers:
            others = [other for other in layers if other != layer]
            without[layer] += answer_losses(link, edits.reading(others), edits.caches.batch).tolist()
    mean = fmean(gathered(with_all))
    return {layer: fmean(gathered(losses)) - mean for layer, losses in without.items()}


def choose(importance: dict[int, float], keep: int) -> list[int]:
    """The ``keep`` most important layers, in ascending order; fewer where the others are better absent.

    Raises:
        SettingError: If ``keep`` is below 1, or no layer helps.
    """
    if keep < 1:
        raise SettingError(f"keep={keep} must be at least 1.")
    helpful = [layer for layer in _by_importance(importance) if importance[layer] > 0]
    if not helpful:
        raise SettingError("no layer of this adapter helps on the held-out data; there is nothing to keep.")
    return sorted(helpful[:keep])


@torch.no_grad()
def curve(
    link: Link,
    writer: Writer,
    batches: Iterable[Batch],
    importance: dict[int, float],
    sizes: Sequence[int],
    max_new_tokens: int,
) -> list[Point]:
    """Scores with the ``sizes`` most important layers; 0 layers are the receiver alone. Ranks as in `rank_layers`."""
    ranked = _by_importance(importance)
    kept = [sorted(ranked[:size]) for size in sizes]
    answers: list[list[Prediction]] = [[] for _ in sizes]
    for batch in batches:
        edits = _Edits(link, writer, batch)
        for found, layers in zip(answers, kept, strict=True):
            found += answer_reading(edits.caches, edits.reading(layers), "message", max_new_tokens)
    points = []
    for layers, found in zip(kept, answers, strict=True):
        found = gathered(found)
        exact, _, losses = columns(found)
        points.append(
            Point(
                layers=layers,
                exact_match=fmean(exact) if exact else None,
                loss=fmean(losses),
                n=len(found),
                megabytes=_megabytes(link, layers),
            )
        )
    return points


class _Edits:
    """One batch under any choice of layers: both prefills and all layers' edits are made once."""

    def __init__(self, link: Link, writer: Writer, batch: Batch) -> None:
        self.link, self.caches = link, ArmCaches(link, writer, batch.to(link.receiver.device))
        own = self.caches.own_context
        self.delta = link.delta(own.cache, self.caches.summaries, question=own.question)

    def reading(self, layers: Sequence[int]) -> Reading:
        own, places = self.caches.own_context, [self.link.adapter.config.receiver_layers.index(at) for at in layers]
        if not places:
            return own
        delta = KV(*(tensor[places] for tensor in self.delta))
        return own._replace(cache=self.link.edit(own.cache, tuple(layers), delta, self.caches.summaries.present))


def _by_importance(importance: dict[int, float]) -> list[int]:
    return sorted(importance, key=lambda layer: (-importance[layer], layer))


def _megabytes(link: Link, layers: Sequence[int]) -> float:
    if not layers:
        return 0.0
    tensors = keep_layers(link.adapter, layers).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
