"""This example's question, asked over another example's passages: only what was read is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class OtherText(Arm):
    """The sharer reads the partner's passages and this example's own question.

    Another example's message holds that example's question too, where the sharer is shown it, and may mislead the
    receiver by it. This one cannot.
    """

    name = "other_text"
    family = "control"
    place = 62
    needs_different_texts = True
    comparisons = (("gain_over_other_text", "message", "other_text"),)
    note = (
        "*Other text* is a message of the partner's passages with this example's question: beside *mismatched*, whose "
        "sharer was shown another question."
    )

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        return not shared and prompts.share_question  # else it is the mismatched message

    def read(self, caches: ArmCaches) -> Reading:
        partners = dict(zip(caches.batch.ids, caches.partners, strict=True))
        message = caches.message_of(caches.batch.examples, lambda example: partners[example.id].sharer_reads)
        return caches.receives(message)
