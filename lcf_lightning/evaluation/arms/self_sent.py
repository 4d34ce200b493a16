"""The receiver's own context, sent to itself: the same compute, and no news."""

from __future__ import annotations

from collections.abc import Iterable

from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class SelfSent(Arm):
    """The sharer reads what the receiver has read, and sends that."""

    name = "self"
    family = "control"
    place = 80
    needs_different_texts = True
    comparisons = (("self_substitution_gap", "message", "self"),)
    note = "*Self* is the receiver's own context sent by the sharer."

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        return not shared and self._something_to_send(prompts, examples)

    def read(self, caches: ArmCaches) -> Reading:
        if not self._something_to_send(caches.batch.prompts, caches.batch.examples):
            raise SettingError(
                "share_question=false: a receiver that has read nothing has nothing to send to itself (arm self)."
            )
        return caches.receives(caches.message_of(caches.batch.examples, lambda example: example.receiver_reads))

    @staticmethod
    def _something_to_send(prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        """Whether every receiver, in the sharer's place, would have a span to send."""
        return prompts.share_question or all(example.receiver_reads for example in examples)
