"""A sample of a split in which every benchmark has its share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lcf_lightning.data.partition import shuffled


def sample(benchmarks: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Places of ``limit`` examples, chosen by the seed, from every benchmark in proportion to its size.

    A larger limit takes the same ones and more, as far as the shares allow.

    Args:
        benchmarks: Each example's benchmark.
        limit: How many to take; null, or more than there are, for all.
        seed: Decides which examples of a benchmark are taken.

    Returns:
        Indexes, in the order of the examples.
    """
    if limit is None or limit >= len(benchmarks):
        return list(range(len(benchmarks)))
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(benchmarks):
        places[name].append(place)
    taken = shares({name: len(group) for name, group in places.items()}, limit)
    return sorted(
        place for name, group in places.items() for place in shuffled(group, f"sample/{seed}/{name}")[: taken[name]]
    )


def shares(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many of ``limit`` examples each benchmark gives.

    In proportion to the sizes; what rounding down leaves goes to the largest remainders. Each gives at least one, where
    the limit is not below the number of benchmarks.

    Args:
        sizes: Examples of each benchmark.
        limit: At most their sum.
    """
    total, least = sum(sizes.values()), int(limit >= len(sizes))
    taken = {name: max(least, limit * size // total) for name, size in sizes.items()}
    remainders = {name: limit * size - taken[name] * total for name, size in sizes.items()}
    while (missing := limit - sum(taken.values())) != 0:
        step = 1 if missing > 0 else -1
        if step > 0:
            name = max(remainders, key=remainders.__getitem__)
        else:  # for each to give one, those of several give less
            name = min((name for name in taken if taken[name] > least), key=remainders.__getitem__)
        taken[name] += step
        remainders[name] -= step * total
    return taken
