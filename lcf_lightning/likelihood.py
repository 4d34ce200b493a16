"""How probable given answers are on a cache: what choices are scored by, in evaluation and in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lcf_lightning.data.tokens import pad_right
from lcf_lightning.link import Link, Role
from lcf_lightning.models.cache import KVCache


class Score(NamedTuple):
    """How probable a candidate answer is.

    Attributes:
        log_probability: Of the whole candidate, the sum over its tokens, in nats.
        greedy: Whether each of its tokens is the most probable one, so that greedy decoding would begin with it.
    """

    log_probability: float
    greedy: bool


class Candidate(NamedTuple):
    """A possible answer.

    Attributes:
        row: The row of the batch that it may answer.
        tokens: Its token ids, at least one, without an end.
    """

    row: int
    tokens: list[int]


@torch.no_grad()
def score_candidates(
    link: Link, cache: KVCache, last: Tensor, candidates: Sequence[Candidate], at_once: int, role: Role = "receiver"
) -> list[Score]:
    """The score of each candidate.

    Args:
        link: The pair.
        cache: A cache of all prompt tokens but the last, of every row.
        last: ``[batch, 1]``, int64: the last prompt tokens.
        candidates: Possible answers, any number for each row.
        at_once: How many are read at once; each needs a copy of its row's cache.
        role: Whose cache and tokens these are.
    """
    scores = [Score(0.0, False)] * len(candidates)
    order = sorted(range(len(candidates)), key=lambda at: len(candidates[at].tokens))  # like lengths: little padding
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        ids, mask = (made.to(last.device) for made in pad_right([candidates[at].tokens for at in part], 0))
        rows = torch.tensor([candidates[at].row for at in part], device=last.device)
        losses, greedy = link.continuation(cache.rows(rows), last[rows], ids, mask, role).likelihood(ids)
        log_probabilities, first = -(losses * mask).sum(-1), (greedy | ~mask).all(-1)
        for at, *score in zip(part, log_probabilities.tolist(), first.tolist(), strict=True):
            scores[at] = Score(*score)
    return scores
