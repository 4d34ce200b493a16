"""Another example's message: if it helps as much, the adapter has tuned the receiver and told it nothing."""

from __future__ import annotations

from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class MismatchedArm(Arm):
    """The message of the example's partner: of the same data set, and of the nearest length in tokens."""

    name = "mismatched"
    family = "control"
    place = 60
    comparisons = (
        ("content_attributable_gain", "message", "mismatched"),
        ("presence_effect", "mismatched", "own_context"),
    )
    note = (
        "*Message* beside *mismatched*, the message of another example, tells communication from tuning: their "
        "difference is the content-attributable gain."
    )

    def read(self, caches: ArmCaches) -> Reading:
        return caches.receives_partners()
