"""The receiver reads its own context and this example's message."""

from __future__ import annotations

from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
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
            run.sent = link.summarise(sharer, batch.index)
        with run.watch("receiver_prefill"):
            receiver = link.read_receiver(batch.receiver)
        with run.watch("fuse"):
            return link.fuse(receiver, link.merge(run.sent)), batch.last
