"""Who reads what: the context-mismatch split, and which example's message is the wrong one.

Both are pure functions of their input and a seed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from heapq import merge
from itertools import chain, groupby
from typing import TypeVar

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.errors import DataError, SettingError

T = TypeVar("T")
MODES = ("split", "sharer")


def shuffled(items: Sequence[T], seed: str) -> list[T]:
    """``items`` in an order that depends only on ``seed``."""
    return random.Random(seed).sample(items, len(items))


def checked_mode(mode: str) -> str:
    """``mode``, if `partition` knows it; else a SettingError."""
    if mode not in MODES:
        raise SettingError(f"partition={mode!r} must be one of {', '.join(MODES)}.")
    return mode


def checked_distractors(distractors: int | None) -> int | None:
    """``distractors``, if it is a number of passages, or None for all; else a SettingError."""
    if distractors is not None and distractors < 0:
        raise SettingError(f"distractors={distractors} must be at least 0, or null for all.")
    return distractors


def with_distractors(count: int, supporting: Sequence[int], distractors: int | None, seed: str) -> list[int]:
    """Which of ``count`` passages are kept, ascending: the supporting ones and ``distractors`` others (null: all)."""
    others = [place for place in range(count) if place not in supporting]
    return sorted([*supporting, *shuffled(others, seed)[:distractors]])


def partition(
    passages: Sequence[Passage], supporting: Sequence[int], mode: str, seed: str
) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """Divide an example's passages between sharer and receiver.

    Args:
        passages: In reading order, which each side keeps.
        supporting: Indexes of the passages that hold the answer.
        mode: ``split``: halves; supporting passages are dealt in turn, the sharer first, so that of two each side has
            one. ``sharer``: the sharer reads everything, the receiver nothing.
        seed: Decides which supporting passage and which others go where.

    Returns:
        The sharer's passages and the receiver's.

    Raises:
        SettingError: If the mode is unknown.
    """
    if checked_mode(mode) == "sharer":
        return tuple(passages), ()
    gold = shuffled(sorted(set(supporting)), f"{seed}/gold")
    rest = shuffled([i for i in range(len(passages)) if i not in set(gold)], f"{seed}/rest")
    sharer = set(gold[0::2])
    missing = max(0, (len(passages) + 1) // 2 - len(sharer))
    sharer |= set(rest[:missing])
    return (
        tuple(passage for i, passage in enumerate(passages) if i in sharer),
        tuple(passage for i, passage in enumerate(passages) if i not in sharer),
    )


def sharer_text(example: Example) -> tuple[str, ...]:
    """What the sharer reads, sentence by sentence."""
    return tuple(sentence for passage in example.sharer_reads for sentence in passage)


def sent_text(example: Example) -> tuple[str, ...]:
    """What a message is about: what the sharer reads or, if that is no passage, the question."""
    return sharer_text(example) or (example.question,)


def shared_text(example: Example) -> tuple[str, ...]:
    """What both models read where they read the same."""
    return (*chain(*example.history), *sharer_text(example), example.question)


def mismatched_partners(
    examples: Sequence[Example],
    lengths: Sequence[int],
    seed: int,
    reads: Callable[[Example], tuple[str, ...]] = sharer_text,
    forms: Sequence[Hashable] | None = None,
) -> list[int]:
    """For every example the index of another one whose message is the wrong message for it.

    It is of the same benchmark, holds another text, and is the nearest in length of those. Of equally near ones the
    seed chooses: examples of one length are shuffled, and each takes the next, the last the first, so that each message
    is used about once. The same examples and seed give the same partners.

    Args:
        examples: A whole split.
        lengths: How long the text is that the sharer reads of each example, such as its tokens.
        seed: Decides between examples that are equally near.
        reads: The text of an example that its partner's must differ from.
        forms: Each example's form: one of the same form is preferred to a nearer one; by default all have the same.

    Returns:
        ``[examples]`` indexes.

    Raises:
        DataError: If all examples of a benchmark hold the same text.
    """
    texts = [reads(example) for example in examples]
    benchmarks: dict[Hashable, list[int]] = defaultdict(list)
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index in shuffled(range(len(examples)), f"mismatch/{seed}"):
        benchmarks[examples[index].benchmark].append(index)
        alike[examples[index].benchmark, forms[index] if forms else None].append(index)
    partners: dict[int, int] = {}
    for pool in (*alike.values(), *benchmarks.values()):
        for index, partner in _nearest(pool, texts, lengths, random.Random(f"mismatch/{seed}")).items():
            partners.setdefault(index, partner)
    for name, pool in benchmarks.items():
        if pool[0] not in partners:
            where = f"benchmark {name!r}" if name else "the split"
            raise DataError(
                f"{where} holds one and the same text in all of its {len(pool)} examples; a mismatched message needs "
                "two texts that differ."
            )
    return [partners[index] for index in range(len(examples))]


def _nearest(
    pool: Sequence[int], texts: Sequence[Hashable], lengths: Sequence[int], rng: random.Random
) -> dict[int, int]:
    """For each index of a shuffled pool the nearest in length with another text; none if they all hold the same."""
    if len({texts[index] for index in pool}) < 2:
        return {}
    groups: dict[int, list[int]] = defaultdict(list)
    for index in pool:
        groups[lengths[index]].append(index)
    others = {length: _next_others(group, texts) for length, group in groups.items()}
    order = sorted(groups)
    found = {}
    for place, length in enumerate(order):
        distance = partial(_distance, length)
        for index, partner in zip(groups[length], others[length], strict=True):
            outward = merge(reversed(order[:place]), order[place + 1 :], key=distance) if partner is None else ()
            for _, equally_far in groupby(outward, distance):
                near = []
                for side in equally_far:
                    start = rng.randrange(len(groups[side]))
                    member = groups[side][start]
                    near.append(member if texts[member] != texts[index] else others[side][start])
                near = [member for member in near if member is not None]
                if near:
                    partner = rng.choice(near)
                    break
            assert partner is not None, "the pool holds two texts"
            found[index] = partner
    return found


def _distance(length: int, other: int) -> int:
    return abs(length - other)


def _next_others(group: Sequence[int], texts: Sequence[Hashable]) -> list[int | None]:
    """For each of a group the next one with another text, the first after the last; None if there is none."""
    found: list[int | None] = [None] * len(group)
    for place in reversed(range(2 * len(group))):  # the second time round, the last know what the first have found
        here, after = place % len(group), (place + 1) % len(group)
        found[here] = found[after] if texts[group[here]] == texts[group[after]] else group[after]
    return found
