"""`Arm`: one way to build what an answer is read from, all else equal."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.writer import Writer

FAMILIES = ("message", "control", "text")


@dataclass
class TimedRun:
    """One answer under one arm, as it is timed.

    Attributes:
        watch: Its stages. What a tokenizer does is outside of all of them, in every arm.
        static_size: The size of the cache that a text is to be written on, or null for one that grows (`generate`).
        sent: What the sharer sends: messages, one of each sharer, or a text.
        prompt: The digest that travels with a message of what it is sent for, see `Message`.
        written_tokens: Tokens that were written for it.
    """

    watch: Stopwatch
    static_size: int | None = None
    sent: Sequence[Summaries] | str = ()
    prompt: str | None = None
    written_tokens: int = 0


def ask(link: Link, cache: KVCache, question: Tokens, run: TimedRun) -> KVCache:
    """The receiver's cache when it has read its question too, where that was left to be read (``prompts.reread``)."""
    if not question.ids.shape[1]:
        return cache
    with run.watch("question"):
        return link.read_on(cache, question)


class Arm(ABC):
    """One way to build what an answer is read from. What reports, plots and latencies must know of it, it says itself.

    Attributes:
        name: In settings, predictions and reports; without blanks.
        family: ``message``: this example's message. ``control``: another one, which tells communication from tuning.
            ``text``: no message at all.
        place: Where it stands among the others in reports; smaller first.
        needs_different_texts: Whether it means nothing where both models read the same text.
        timed: Whether its latency is worth measuring: what differs from the message only in what is sent is not.
        budget: N where the sharer writes a text of up to N tokens; 0 elsewhere.
        without_form: The text arm that this one is, but for the form of answers that the adapter teaches (`WithForm`).
        comparisons: Differences of interest, over examples answered under both: what it is called, the first arm, and
            the one whose score is taken off.
        note: What a reader of the report must know of it.
    """

    name: str
    family: Literal["message", "control", "text"]
    place: int = 1_000
    needs_different_texts: bool = False
    timed: bool = False
    budget: int = 0
    without_form: str = ""
    comparisons: tuple[tuple[str, str, str], ...] = ()
    note: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what a report could not show."""
        super().__init_subclass__(**kwargs)
        name, family = getattr(cls, "name", "unnamed"), getattr(cls, "family", "text")
        if not re.fullmatch(r"\w+", name) or family not in FAMILIES:
            raise SettingError(
                f"arm {cls.__name__}: name={name!r} must be letters, digits and _, and family={family!r} one of "
                f"{', '.join(FAMILIES)}."
            )

    @classmethod
    def named(cls, name: str) -> Arm | None:
        """The arm of that name, if it is one of this class."""
        return cls() if name == getattr(cls, "name", None) else None

    @classmethod
    def usual(cls) -> list[Arm]:
        """The arms of this class that an evaluation runs where none is named."""
        return [cls()]

    @property
    def label(self) -> str:
        """The name as people read it."""
        return readable(self.name)

    def applies(self, shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> bool:
        """Whether it means something for these examples, where both read the same text (``shared``) or not."""
        return not (shared and self.needs_different_texts)

    @abstractmethod
    def read(self, caches: ArmCaches) -> Reading:
        """What the answers of a batch are read from.

        Raises:
            SettingError: If that means nothing for this batch.
        """

    def reading(self, caches: ArmCaches) -> Reading:
        """`read`, where this arm means something at all.

        Raises:
            SettingError: If it does not.
        """
        if caches.link.shared and self.needs_different_texts:
            raise SettingError(
                f"arm {self.name!r} needs a sharer and a receiver that read different texts (pooler not null)."
            )
        return self.read(caches)

    def run(self, link: Link, writer: Writer, batch: Batch, run: TimedRun) -> tuple[KVCache, Tensor]:
        """All that comes before the first token, stage by stage; for arms that are `timed`.

        Returns:
            The receiver's cache of all prompt tokens but the last, and that token, ``[1, 1]``.
        """
        raise SettingError(f"arm {self.name!r} is not timed.")


def readable(name: str) -> str:
    """A name as people read it."""
    name = re.sub(r"t2t_(\d+)", r"T2T-\1", name)
    return re.sub("_form$", " + form", name).replace("_", " ")
