"""This example's message in fewer bytes, as the receiver gets it off the wire."""

from __future__ import annotations

from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.models.geometry import KV
from lcf_lightning.wire import LARGEST, rounded


class OnTheWire(Arm):
    """This example's message rounded to int8 or int4 (`Message.to_bytes`); run where it is named.

    Args:
        dtype: A key of `LARGEST`.
    """

    family = "message"

    def __init__(self, dtype: str) -> None:
        self.dtype, self.name = dtype, f"message_{dtype}"
        self.place = 51 + list(LARGEST).index(dtype)
        self.comparisons = ((f"cost_of_{dtype}", "message", self.name),)

    @classmethod
    def named(cls, name: str) -> Arm | None:
        dtype = name.removeprefix("message_")
        return cls(dtype) if dtype in LARGEST and dtype != name else None

    @classmethod
    def usual(cls) -> list[Arm]:
        return []

    def read(self, caches: ArmCaches) -> Reading:
        sent = caches.link.summarise(caches.sharer, caches.batch.index)
        received = sent._replace(kv=KV(*(rounded(side, self.dtype).to(side) for side in sent.kv)))
        return caches.receives(caches.link.merge(received))
