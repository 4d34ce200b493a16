"""Another example's message: if it helps as much, the adapter has tuned the receiver and told it nothing."""

from __future__ import annotations

from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class MismatchedArm(Arm):
    """The message of the example's partner, of like length."""

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
        partners = caches.batch.partners
        if not partners:
            raise SettingError("batch.partners is missing: the mismatched arm needs batches of the evaluation loaders.")
        summaries = caches.message_of(partners, lambda example: example.sharer_reads)
        return caches.receives(summaries)._replace(partners=partners)
