"""Who reads what: the context-mismatch split, and which example's message is the wrong one.

Both are pure functions of their input and a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain
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


def shared_text(example: Example) -> tuple[str, ...]:
    """What both models read where they read the same."""
    return (*chain(*example.history), *sharer_text(example), example.question)


def mismatched_partners(
    examples: Sequence[Example], seed: int, reads: Callable[[Example], tuple[str, ...]] = sharer_text
) -> list[int]:
    """For every example the index of another one whose message is the wrong message for it.

    Examples are ordered by the length of the text that the sharer ``reads``, equal lengths at random, and each takes
    the next one that holds another text: a fixed, length-matched derangement under the seed, but for the rare skip over
    a twin.

    Raises:
        DataError: If all examples hold the same text.
    """
    texts = [reads(example) for example in examples]
    order = shuffled(range(len(examples)), f"mismatch/{seed}")
    order.sort(key=lambda i: sum(map(len, texts[i])))
    partners = [-1] * len(examples)
    for place, index in enumerate(order):
        for offset in range(1, len(order)):
            candidate = order[(place + offset) % len(order)]
            if texts[candidate] != texts[index]:
                partners[index] = candidate
                break
        else:
            raise DataError(
                f"{len(examples)} examples hold the same sharer text; a mismatched message needs two that differ."
            )
    return partners
