"""How fast the sharer writes a text, and on which cache it is faster: no baseline may be slower than it must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TypedDict

import torch
from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.text_baseline import text_prompts, write_at_once, write_texts
from lcf_lightning.link import Link
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.writer import Writer


class Spread(TypedDict):
    """Median, least and greatest of the repeats."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(median=median(values), min=min(values), max=max(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of ratios, paired by position."""
    return spread([one / other for one, other in zip(above, below, strict=True)])


class Writing(TypedDict):
    """How fast the sharer writes, its prefill included, batch 1.

    Attributes:
        budget: Tokens that it may write.
        cache: ``static`` where a cache of fixed size was faster here, else ``dynamic``: plain ``generate`` of the
            prompt. T2T is timed with the faster.
        tokens_per_second: Tokens written in a second.
        to_generate: These over those of plain ``generate``, which writes the same tokens; paired by repeat.
    """

    budget: int
    cache: str
    tokens_per_second: Spread
    to_generate: Spread


def static_size(link: Link, writer: Writer, batches: Sequence[Batch], budget: int) -> int:
    """One size of cache for all texts of some examples, so that what is compiled for it is compiled once."""
    prompts = [text_prompts(link, writer, batch.prompts, batch.examples)[0] for batch in batches]
    return max(tokens.ids.shape[1] for tokens in prompts) + 1 + budget


@torch.no_grad()
def measure_writing(
    link: Link, writer: Writer, batches: Sequence[Batch], budget: int, size: int, repeats: int, warmup: int = 1
) -> Writing:
    """Time the sharer's texts with either cache, in turn, ``repeats`` times.

    Args:
        link: The pair.
        writer: Its prompts.
        batches: Batches of one example.
        budget: Tokens that the sharer may write.
        size: Of the cache that does not grow, see `static_size`.
        repeats: At least 1, each on the next of the batches.
        warmup: Repeats thrown away first.
    """
    speeds: dict[str, list[float]] = {"dynamic": [], "static": []}
    for repeat in range(-warmup, repeats):
        batch = batches[repeat % len(batches)]
        tokens, last = text_prompts(link, writer, batch.prompts, batch.examples)
        ways: dict[str, Callable[[], Tensor]] = {
            "dynamic": lambda: write_at_once(link, tokens, last, budget),  # noqa: B023 - called at once
            "static": lambda: write_texts(link, link.read_sharer(tokens), last, budget, size),  # noqa: B023
        }
        for name, write in ways.items():
            watch = Stopwatch(link.sharer.device)
            with watch("write"):
                ids = write()
            if repeat >= 0:
                speeds[name].append(ids.shape[1] / watch.milliseconds["write"] * 1e3)
    cache = max(speeds, key=lambda name: median(speeds[name]))
    return Writing(
        budget=budget,
        cache=cache,
        tokens_per_second=spread(speeds[cache]),
        to_generate=ratio(speeds[cache], speeds["dynamic"]),
    )
