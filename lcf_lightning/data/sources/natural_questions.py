"""Natural Questions, open (Kwiatkowski et al. 2019; Lee et al. 2019): short questions, each with its gold passage."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import split_sentences
from lcf_lightning.data.sources.source import RowSource


class NaturalQuestions(RowSource):
    """Questions whose passage the sharer reads whole; the receiver reads nothing but the question.

    A row holds ``id``, ``question``, ``answers``, the passage's ``title`` and the passage as ``context``.

    Args:
        train: Hub id or local file; null for none.
        test: The same, for the test split.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    def __init__(
        self,
        *,
        train: str | None = None,
        test: str,
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=tuple(dict.fromkeys(row["answers"])),
            sharer=((f"{row['title']}: ", *split_sentences(row["context"])),),
            partition={"mode": "sharer", "seed": seed},
        )
