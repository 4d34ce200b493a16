"""Which token of the sharer stands where a token of the receiver stands, when both read the same text.

C2C (arXiv 2510.03215) calls this token alignment. Two tokenizers cut a text differently and two chat templates wrap it
differently, but the characters are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.host import require_places

STRATEGIES = ("first", "longest")
Indexes = NDArray[np.int64]


class Layout(NamedTuple):
    """Where the tokens of one prompt stand in its text.

    The text is cut into pieces: what both models read stands in the odd ones, what a tokenizer or its chat template
    puts around it in the even ones.

    Attributes:
        pieces: ``[tokens]``, int64: each token's piece, never falling.
        starts: ``[tokens]``, int64: the first character, counted within the piece.
        ends: ``[tokens]``, int64: one past the last.
    """

    pieces: Indexes
    starts: Indexes
    ends: Indexes


def align(sharer: Layout, receiver: Layout, strategy: str) -> Indexes:
    """For every receiver token the sharer token that covers the same characters.

    In what both read, a receiver token that several sharer tokens cover takes the ``first`` of them, or the one that
    covers most of it (``longest``; the first of equals); one that stands on no character takes the token there. Tokens
    of a template go by role and position: the first of a piece to the first, the last to the last. A piece that the
    sharer's template lacks takes the token before it. Pieces that are cut alike align one to one.

    Args:
        sharer: The sharer's prompt.
        receiver: The receiver's prompt, of the same texts.
        strategy: ``first`` or ``longest``.

    Returns:
        ``[receiver tokens]``, int64, never falling.

    Raises:
        GeometryError: If the sharer's prompt has no token.
    """
    if not len(sharer.pieces):
        raise GeometryError("a sharer's prompt without a token can be aligned with nothing.")
    index = np.zeros(len(receiver.pieces), dtype=np.int64)
    for piece in np.unique(receiver.pieces):
        rows, columns = (np.flatnonzero(layout.pieces == piece) for layout in (receiver, sharer))
        if not len(columns):
            index[rows] = max(0, int(np.searchsorted(sharer.pieces, piece)) - 1)
        elif piece % 2 == 0:
            index[rows] = columns[by_position(len(columns), len(rows))]
        else:
            sharer_ends = (sharer.starts[columns], sharer.ends[columns])
            receiver_ends = (receiver.starts[rows], receiver.ends[rows])
            alike = all(np.array_equal(one, other) for one, other in zip(sharer_ends, receiver_ends, strict=True))
            index[rows] = columns if alike else columns[_by_characters(*sharer_ends, *receiver_ends, strategy)]
    return index


def align_places(sharer: Layout, said: Sequence[str], receiver: Layout, read: Sequence[str]) -> Indexes:
    """For every receiver token the sharer token that stands at its place, where the two read different texts.

    A line goes to the same line, where both contents have as many lines, else the whole content to the content. Within
    it tokens go by relative place: the first to the first, the last to the last. What stands around contents goes to
    the same, as in `align`. Of chats of different length the last turns correspond.

    Args:
        sharer: The sharer's prompt.
        said: The texts in its odd pieces.
        receiver: The receiver's prompt, of other texts.
        read: The texts in its odd pieces.

    Returns:
        ``[receiver tokens]``, int64, never falling.

    Raises:
        GeometryError: If the sharer's prompt has no token.
    """
    turns = max(len(said), len(read))
    lines = np.ones(2 * turns + 1, dtype=np.int64)  # of each piece
    for back in range(1, min(len(said), len(read)) + 1):
        counts = {texts[-back].count("\n") + 1 for texts in (said, read)}
        lines[-2 * back] = counts.pop() if len(counts) == 1 else 1
    return align(_by_lines(sharer, said, lines), _by_lines(receiver, read, lines), "first")


def _by_lines(layout: Layout, contents: Sequence[str], lines: Indexes) -> Layout:
    """A layout whose pieces are lines, all to be aligned by position; the last contents of ``lines`` are these."""
    missing = len(lines) - (2 * len(contents) + 1)
    pieces = np.where(layout.pieces > 0, layout.pieces + missing, 0)
    line = np.zeros(len(pieces), dtype=np.int64)
    for place, text in enumerate(contents):
        rows = layout.pieces == 2 * place + 1
        breaks = np.array([at for at, character in enumerate(text) if character == "\n"], dtype=np.int64)
        line[rows] = np.searchsorted(breaks, layout.ends[rows] - 1)  # a token belongs where its last character is
    before = np.cumsum(lines) - lines
    return Layout(2 * (before[pieces] + np.minimum(line, lines[pieces] - 1)), layout.starts, layout.ends)


def by_position(sharer: int, receiver: int) -> Indexes:
    """For each of ``receiver`` tokens one of ``sharer`` tokens at the same relative place, ends on ends."""
    return np.rint(np.arange(receiver) * (sharer - 1) / max(1, receiver - 1)).astype(np.int64)


def _by_characters(starts: Indexes, ends: Indexes, begins: Indexes, stops: Indexes, strategy: str) -> Indexes:
    """For each stretch ``begins … stops`` one of the tokens ``starts … ends``; both in ascending order."""
    solid = np.flatnonzero(ends > starts)
    there = np.maximum(np.searchsorted(starts, begins, side="right") - 1, 0)  # for want of a character in common
    if not len(solid):
        return there
    first = np.searchsorted(ends[solid], begins, side="right")
    last = np.searchsorted(starts[solid], stops, side="left") - 1
    best, covered = there, np.zeros(len(begins), dtype=np.int64)
    for step in range(1 if strategy == "first" else int((last - first).max(initial=0)) + 1):
        token = solid[np.minimum(first + step, len(solid) - 1)]
        shared = np.minimum(ends[token], stops) - np.maximum(starts[token], begins)
        better = (shared > covered) & (first + step <= last)
        best, covered = np.where(better, token, best), np.where(better, shared, covered)
    return best


def padded_places(index: Sequence[Indexes], sharer: Tensor) -> Tensor:
    """Alignments of a batch, ``[batch, receiver tokens]``, both sides padded on the left.

    Args:
        index: Of each example, as `align` gives it.
        sharer: ``[batch, sharer tokens]``, bool, False on padding.

    Raises:
        GeometryError: If a place is none of the sharer's.
    """
    width = max(map(len, index))
    shifts = (~sharer).sum(1).tolist()
    places = np.stack([np.pad(row + shift, (width - len(row), 0)) for row, shift in zip(index, shifts, strict=True)])
    if places.size:
        require_places(int(places.min()), int(places.max()), sharer.shape[1])
    return torch.from_numpy(places)


@lru_cache(maxsize=4)  # a collator is made for each batch of an evaluation and each message, and these are large
def require_one_vocabulary(sharer: PreTrainedTokenizerBase, receiver: PreTrainedTokenizerBase) -> None:
    """Raise a SettingError unless every id that both tokenizers know is one token. Either may know more."""
    known = {id: token for token, id in sharer.get_vocab().items()}
    for token, id in receiver.get_vocab().items():
        if known.get(id, token) != token:
            raise SettingError(
                f"sharer_reads='receiver_tokens' must be own: token {id} of the receiver is {token!r}, of the sharer "
                f"{known[id]!r}."
            )
