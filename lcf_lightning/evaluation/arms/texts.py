"""What the receiver answers from text alone: the question, its own context, or everything."""

from __future__ import annotations

from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun, ask
from lcf_lightning.evaluation.caches import ArmCaches, Reading, passages_prompts
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.writer import Writer


class OwnContext(Arm):
    """The receiver reads its own passages."""

    name = "own_context"
    family = "text"
    place = 20
    timed = True
    comparisons = (("gain_over_own_context", "message", "own_context"),)

    def read(self, caches: ArmCaches) -> Reading:
        return caches.own_context

    def run(self, link: Link, writer: Writer, batch: Batch, run: TimedRun) -> tuple[KVCache, Tensor]:
        with run.watch("receiver_prefill"):
            cache = link.read_receiver(batch.receiver)
        return ask(link, cache, batch.question, run), batch.last


class QuestionOnly(Arm):
    """The receiver reads nothing but the question: the floor."""

    name = "question_only"
    family = "text"
    place = 10
    needs_different_texts = True
    timed = True

    @staticmethod
    def passages(example: Example) -> tuple[Passage, ...]:
        """What it reads."""
        return ()

    def read(self, caches: ArmCaches) -> Reading:
        return caches.reads(self.passages)

    def run(self, link: Link, writer: Writer, batch: Batch, run: TimedRun) -> tuple[KVCache, Tensor]:
        prompt = passages_prompts(link, writer, batch, self.passages)
        with run.watch("receiver_prefill"):
            cache = link.read_receiver(prompt.ahead)
        return ask(link, cache, prompt.question, run), prompt.last


class FullContext(QuestionOnly):
    """The receiver reads everything as text: the ceiling."""

    name = "full_context"
    place = 30
    comparisons = (("gap_to_full_context", "full_context", "message"),)

    @staticmethod
    def passages(example: Example) -> tuple[Passage, ...]:
        return example.shared + example.sharer + example.receiver
