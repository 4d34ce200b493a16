"""2WikiMultihopQA (Ho et al. 2020): ten paragraphs, two or four of which hold the answer together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import spaced
from lcf_lightning.data.sources.hotpotqa import HotpotQA
from lcf_lightning.errors import SettingError

_TYPES = ("compositional", "comparison", "bridge_comparison", "inference")


class TwoWikiMultihopQA(HotpotQA):
    """Multi-hop questions with half of the supporting paragraphs on each side, read as `HotpotQA` is.

    Sentences of a paragraph come with or without the blank between them; the models read them with it.

    Args:
        train: Hub id or local file, in HotpotQA's shape; null for none.
        test: The same, for the test split.
        distractors: How many of the other paragraphs to keep, divided evenly; null for all, 0 for the supporting
            paragraphs only.
        question_type: Keep only ``compositional``, ``comparison``, ``bridge_comparison`` or ``inference`` questions;
            null for all.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_config = None

    def __init__(
        self,
        *,
        train: str | None = None,
        test: str,
        distractors: int | None = None,
        question_type: str | None = None,
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(test, test, distractors, None, validation_size, train_limit, test_limit)
        if question_type not in (None, *_TYPES):
            raise SettingError(f"question_type={question_type!r} must be one of {', '.join(_TYPES)}, or null.")
        self.train, self.question_type = train, question_type  # which HotpotQA's own cannot be

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        example = super().to_example(row, seed)
        return replace(
            example,
            sharer=tuple((title, *spaced(sentences)) for title, *sentences in example.sharer),
            receiver=tuple((title, *spaced(sentences)) for title, *sentences in example.receiver),
        )
