"""bAbI tasks 1-3 (Weston et al. 2015): where somebody or something is, after a story of short sentences."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import checked_mode, partition
from lcf_lightning.data.sources.source import RowSource
from lcf_lightning.errors import SettingError


class BAbI(RowSource):
    """Stories whose sentences two readers divide, in order.

    Args:
        train: Local file (or hub id) with ``task``, ``story``, ``question``, ``answer``, ``supporting``.
        test: The same, for the test split.
        task: ``qa1``, ``qa2`` or ``qa3``.
        partition: ``split``: half of the sentences each, the supporting one with the sharer. ``sharer``: the sharer
            reads the whole story, the receiver nothing.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_splits = ("train", "test")

    def __init__(
        self,
        train: str,
        test: str,
        task: str = "qa1",
        partition: str = "sharer",
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        if task not in ("qa1", "qa2", "qa3"):
            raise SettingError(f"task={task!r} must be qa1, qa2 or qa3.")
        self.task, self.partition = task, checked_mode(partition)

    def keep(self, row: dict[str, Any]) -> bool:
        return bool(row["task"] == self.task)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        story = [(sentence,) for sentence in row["story"]]
        sharer, receiver = partition(story, row["supporting"], self.partition, f"babi/{seed}/{row['id']}")
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=(row["answer"],),
            sharer=sharer,
            receiver=receiver,
            partition={"mode": self.partition, "seed": seed},
        )
