"""This example's message with its spans' contents permuted: the right content in the wrong places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lcf_lightning.adapter.layers import aligned
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import shuffled
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class Permuted(Arm):
    """The sharer's tokens, dealt at random to the spans; each span keeps its size. The sharer reads the right text.

    Where both models read the same text, each of the receiver's tokens is given one of the sharer's that belongs to
    another; where tokens are carried as they are, they come in another order.
    """

    name = "permuted"
    family = "control"
    place = 65
    comparisons = (("gain_over_permuted", "message", "permuted"),)
    note = (
        "*Permuted* is this example's message with the sharer's tokens dealt at random to its spans: the right "
        "content, in the wrong places."
    )

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        if shared or prompts.spans != "paragraph":  # a passage may hold several spans
            return True
        return all(len(row.sharer_reads) + prompts.share_question > 1 for row in examples)  # one span is none

    def read(self, caches: ArmCaches) -> Reading:
        batch, ids = caches.batch, caches.batch.ids
        if caches.link.adapter.carries:
            kv, present = caches.summaries
            places = torch.arange(present.shape[1], device=present.device).expand(present.shape)
            order = dealt(places.masked_fill(~present, -1), ids).clamp(min=0)
            return caches.receives(Summaries(aligned(kv, order), present))
        if caches.link.shared:
            index = dealt(batch.index.masked_fill(~batch.receiver.mask, -1), ids).clamp(min=0)
        else:
            index = dealt(caches.sharer.spans_sent(batch.index), ids)
        return caches.receives(caches.link.pool(caches.sharer, index))


def dealt(index: Tensor, ids: Sequence[str]) -> Tensor:
    """``index`` ``[batch, tokens]`` with each row's entries from 0 on permuted among themselves.

    Args:
        index: int64; negative entries keep their places.
        ids: The examples' ids; a row's order is a function of its id, whatever the batch.
    """
    rows = index.clone()
    for row, id in zip(rows, ids, strict=True):
        places = torch.nonzero(row >= 0)[:, 0]
        order = places[torch.tensor(shuffled(range(len(places)), f"permuted/{id}"), dtype=torch.long).to(row.device)]
        row[order] = row[order.roll(1)]  # none keeps its own
    return rows
