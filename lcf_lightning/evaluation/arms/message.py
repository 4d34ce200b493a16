"""The receiver reads its own context and this example's message."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun, ask
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.geometry import KV
from lcf_lightning.sending import digests
from lcf_lightning.writer import Writer


class MessageArm(Arm):
    """This example's message: what all other arms are compared with."""

    name = "message"
    family = "message"
    place = 50
    timed = True

    def read(self, caches: ArmCaches) -> Reading:
        return caches.message

    def run(self, link: Link, writer: Writer, batch: Batch, run: TimedRun) -> tuple[KVCache, Tensor]:
        with run.watch("sharer_prefill"):
            sharer = link.read_sharer(batch.sharer)
        with run.watch("pool"):
            summaries = link.summarise(sharer, batch.index)
        with run.watch("receiver_prefill"):
            receiver = link.read_receiver(batch.receiver)
        with run.watch("fuse"):
            cache = link.fuse(receiver, link.merge(summaries), question=batch.question)
        cache = ask(link, cache, batch.question, run)
        spans = sharer.spans_sent(batch.sharer.spans)
        run.sent = [summaries] if link.shared else by_sharer(summaries, _ends(link, summaries, spans))
        run.prompt = digests(batch.receiver)[0] if link.shared else None
        return cache, batch.last


def _ends(link: Link, summaries: Summaries, spans: Tensor) -> list[int]:
    """How much of one example's message is there up to the end of each sharer's part.

    Args:
        link: The pair and the adapter.
        summaries: The message, a part for each span, or for each of the last tokens where the sharer's are carried.
        spans: ``[sharers, tokens]``, int64: the span of each token of each sharer, -1 where none is sent; counted on.
    """
    if not link.adapter.carries:
        return (spans.amax(1) + 1).cummax(0).values.tolist()
    read = (spans >= 0).sum(1).cumsum(0)
    return (read - read[-1] + summaries.present.sum()).clamp(min=0).tolist()


def by_sharer(summaries: Summaries, ends: list[int]) -> list[Summaries]:
    """The summaries of one example, a part for each of its sharers that has something to send."""
    return [
        Summaries(KV(*(part[:, :, :, start:end] for part in summaries.kv)), summaries.present[:, start:end])
        for start, end in pairwise([0, *ends])
        if end > start  # who has read nothing sends nothing
    ]
