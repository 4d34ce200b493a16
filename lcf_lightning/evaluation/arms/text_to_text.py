"""T2T-N: the sharer writes up to N tokens, which the receiver reads beside its own context."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.text_baseline import read_ahead, reading_prompts, text_prompts, write_at_once, write_texts
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.writer import Writer


class TextToText(Arm):
    """The baseline: text instead of a message.

    Args:
        budget: Tokens that the sharer may write.
    """

    family = "text"
    place = 40
    timed = True
    note = (
        "*T2T-N*: the sharer writes up to N tokens, which the receiver reads beside its own context. That receiver is "
        "untuned; the arms *+ form* give it what the adapter teaches of the form of answers."
    )

    def __init__(self, budget: int) -> None:
        self.budget, self.name = budget, f"t2t_{budget}"
        self.comparisons = ((f"gain_over_{self.name}", "message", self.name),)

    @classmethod
    def named(cls, name: str) -> Arm | None:
        budget = re.fullmatch(r"t2t_([1-9]\d*)", name)
        return cls(int(budget[1])) if budget else None

    @classmethod
    def usual(cls) -> list[Arm]:
        return [cls(budget) for budget in (50, 100, 150, 200)]

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        return not shared

    def read(self, caches: ArmCaches) -> Reading:
        return caches.reads_text(self.budget)

    def run(self, link: Link, writer: Writer, batch: Batch, run: TimedRun) -> tuple[KVCache, Tensor]:
        request, last = text_prompts(link, writer, batch.prompts, batch.examples)
        with run.watch("write"):  # prompt and all
            if run.static_size is None:
                ids = write_at_once(link, request, last, self.budget)
            else:
                ids = write_texts(link, link.read_sharer(request), last, self.budget, run.static_size)
        texts = writer.texts(ids[:, : self.budget], "sharer")
        run.sent, run.written_tokens = texts[0], ids.shape[1]
        told = reading_prompts(link, writer, replace(batch.prompts, reread=None), batch.examples, texts)
        ahead = read_ahead(batch, told.ahead)
        if not ahead:
            with run.watch("read_text"):
                return link.read_receiver(told.ahead), told.last
        with run.watch("receiver_prefill"):
            receiver = link.read_receiver(told.ahead.until(ahead))
        with run.watch("read_text"):
            cache = link.read_on(receiver, told.ahead.after(ahead))
        with run.watch("read_at_once"):  # faster than in two parts, where nothing else goes on meanwhile
            link.read_receiver(told.ahead)
        return cache, told.last
