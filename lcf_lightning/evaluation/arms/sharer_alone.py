"""The sharer answers by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class SharerAlone(Arm):
    """The sharer answers from what it has read, in its own tokens."""

    name = "sharer_alone"
    family = "text"
    place = 5
    comparisons = (("gain_over_sharer_alone", "message", "sharer_alone"),)

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        return shared

    def read(self, caches: ArmCaches) -> Reading:
        prompts = caches.batch.prompts
        if prompts.sharers > 1:
            raise SettingError(f"sharers={prompts.sharers}: no sharer alone (arm sharer_alone) has read all.")
        if not caches.link.shared and not prompts.share_question:
            raise SettingError(
                "share_question=false: the sharer cannot answer alone (arm sharer_alone) what it never reads."
            )
        if prompts.sharer_reads == "own":
            return Reading(caches.sharer.without_last(), caches.batch.sharer.ids[:, -1:], role="sharer")
        collator = caches.writer.collator(replace(prompts, sharer_reads="own"))
        tokens = collator.train(caches.batch.examples).sharer.to(caches.link.sharer.device)
        return Reading(caches.link.prefill_sharer(tokens).without_last(), tokens.ids[:, -1:], role="sharer")
