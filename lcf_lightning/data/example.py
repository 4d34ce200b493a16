"""One question and who reads what: the value every source produces and everything downstream consumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Passage = tuple[str, ...]
"""A passage is a tuple of sentences; joined with nothing in between they give its text."""


@dataclass(frozen=True)
class Example:
    """A question over passages that two readers hold between them.

    Attributes:
        id: Unique within a data set; evaluation counts each id once.
        question: The question the receiver must answer.
        answers: Accepted answers; the first is the training target.
        sharer: Passages only the sharer reads.
        receiver: Passages only the receiver reads.
        shared: Passages both read, before their own.
        needs_sharer: False if the receiver's own passages answer the question.
        partition: How the passages were divided (mode and seed), so that the split can be made again.
        choices: What to choose the answer from, where the question is a multiple-choice one; the answer is among them.
        history: Earlier turns of a chat that both have read: what the user said and what was answered.
        benchmark: The data set, where several are evaluated together.
        open_ended: Whether many answers would do, as in a chat: only the likelihood of the given one is scored.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    sharer: tuple[Passage, ...] = ()
    receiver: tuple[Passage, ...] = ()
    shared: tuple[Passage, ...] = field(default=(), kw_only=True)
    needs_sharer: bool = True
    partition: dict[str, Any] = field(default_factory=dict, hash=False)
    choices: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    benchmark: str = ""
    open_ended: bool = False

    @property
    def sharer_reads(self) -> tuple[Passage, ...]:
        """All that the sharer reads."""
        return self.shared + self.sharer

    @property
    def receiver_reads(self) -> tuple[Passage, ...]:
        """All that the receiver reads."""
        return self.shared + self.receiver

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError(f"Example {self.id!r} has no answer; at least one is needed.")
        if self.choices and self.answers[0] not in self.choices:
            raise ValueError(f"Example {self.id!r} has the answer {self.answers[0]!r}, which is none of its choices.")
