"""The receiver reads its own context and this example's message."""

from __future__ import annotations

import torch
from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun, ask
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.geometry import KV
from lcf_lightning.sending import digest_of, digests
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
            sharer = link.prefill_sharer(batch.sharer)
        with run.watch("pool"):
            sharer = link.select(sharer, batch.sharer)
            summaries = link.summarise(sharer, batch.index)
        with run.watch("receiver_prefill"):
            receiver = link.read_receiver(batch.receiver)
        with run.watch("fuse"):
            cache = link.fuse(receiver, link.merge(summaries), question=batch.question)
        cache = ask(link, cache, batch.question, run)
        run.sent = [summaries] if link.shared else by_sharer(link, sharer, batch.sharer.spans)
        (example,) = batch.examples
        if link.shared:
            run.prompt = digests(batch.receiver)[0]
        elif batch.prompts.share_question:
            run.prompt = digest_of(example.history, example.question)
        return cache, batch.last


def by_sharer(link: Link, sharer: KVCache, spans: Tensor) -> list[Summaries]:
    """The message of each sharer of one example that has something to send.

    Args:
        link: The pair and the adapter.
        sharer: What the sharers have read.
        spans: ``[sharers, tokens]``, int64: the span of each token of each sharer, -1 for none; counted over all.
    """
    messages = []
    for own in torch.eye(len(spans), dtype=torch.bool, device=spans.device):
        index = spans.masked_fill(~own[:, None], -1).reshape(1, -1)
        if not (index >= 0).any():
            continue  # who has read nothing sends nothing
        kv, present = link.summarise(sharer, index)
        messages.append(Summaries(KV(*(side[:, :, :, present[0]] for side in kv)), present[:, present[0]]))
    return messages
