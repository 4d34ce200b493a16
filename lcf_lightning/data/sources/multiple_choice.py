"""Multiple choice: ARC, OpenBookQA, MMLU, MMLU-Redux, MMLU-Pro."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.sources.source import RowSource, row_id
from lcf_lightning.errors import SettingError

ANSWERS = ("letter", "text")


class MultipleChoice(RowSource):
    """Questions with up to twenty-six choices, scored by their likelihood.

    A row holds ``question`` (or ``question_stem``), ``choices`` (or ``options``; a list, or ``text`` and ``label``) and
    ``answer`` (an index; or ``answer_index``, or ``answerKey``, a label). Rows whose ``error_type`` is not ``ok``
    (MMLU-Redux) are left out.

    Args:
        train: Hub id or local file; null where there is only a test split.
        test: The same, for the test split; null where there is only a training split.
        answer_with: ``letter``: the prompt lists the choices, the answer is a letter. ``text``: the prompt holds the
            question only, the answer is the choice itself; small models answer so better.
        hub_config: Configuration of a hub data set, such as ``ARC-Challenge``.
        validation_size: Rows of the training split to hold out for validation, or, below 1, their fraction.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_splits = ("train", "test")

    def __init__(
        self,
        train: str | None = None,
        test: str | None = None,
        answer_with: str = "letter",
        hub_config: str | None = None,
        validation_size: float = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        if answer_with not in ANSWERS:
            raise SettingError(f"answer_with={answer_with!r} must be one of {', '.join(ANSWERS)}.")
        self.answer_with, self.hub_config = answer_with, hub_config

    def keep(self, row: dict[str, Any]) -> bool:
        return row.get("error_type") in (None, "ok")

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        texts, labels = _choices(row)
        answer = _answer(row, labels)
        question = str(row.get("question") or row["question_stem"]).strip()
        choices = texts
        if self.answer_with == "letter":
            choices = list(ascii_uppercase[: len(texts)])
            listed = [f"{letter}. {text}" for letter, text in zip(choices, texts, strict=True)]
            question = "\n".join([question, *listed, "Answer with the letter of the right choice."])
        return Example(
            id=row_id(row, question, texts),
            question=question,
            answers=(choices[answer],),
            choices=tuple(choices),
        )


def _choices(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The choices' texts and labels."""
    listed = row.get("choices") or row["options"]
    texts = listed["text"] if isinstance(listed, dict) else listed
    labels = listed["label"] if isinstance(listed, dict) else list(ascii_uppercase[: len(texts)])
    if not 1 <= len(texts) <= len(ascii_uppercase) or len(labels) != len(texts):  # MMLU-Pro has two rows with one
        raise ValueError(f"{len(texts)} choices; between 1 and {len(ascii_uppercase)} are needed")
    stripped = [str(text).strip() for text in texts]
    if not all(stripped):
        raise ValueError("an empty choice")
    return stripped, labels


def _answer(row: dict[str, Any], labels: list[str]) -> int:
    """Index of the right choice."""
    keys = [row[name] for name in ("answer_index", "answer", "answerKey") if row.get(name) is not None]
    if not keys:
        raise KeyError("answer")
    key = keys[0]
    index = labels.index(key) if isinstance(key, str) else int(key)
    if not 0 <= index < len(labels):
        raise ValueError(f"answer {index} of {len(labels)} choices")
    return index
