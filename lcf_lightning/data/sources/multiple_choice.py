"""Multiple choice: ARC, OpenBookQA, MMLU, MMLU-Redux, MMLU-Pro."""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.sources.source import RowSource, row_id
from lcf_lightning.errors import SettingError

ANSWERS = ("letter", "text")
ERRORS = ("left_out", "corrected")
LISTING = "{question}\n{choices}\nAnswer with the letter of the right choice."
_NO_KEY = ("no_correct_answer", "expert")


class MultipleChoice(RowSource):
    """Questions with up to twenty-six choices, scored by their likelihood.

    A row holds ``question`` (or ``question_stem``), ``choices`` (or ``options``; a list, or ``text`` and ``label``) and
    ``answer`` (an index; or ``answer_index``, or ``answerKey``, a label). Rows of MMLU-Redux have an ``error_type``.

    Args:
        train: Hub id or local file; null where there is only a test split.
        test: The same, for the test split; null where there is only a training split.
        answer_with: ``letter``: the prompt lists the choices, the answer is a letter. ``text``: the prompt holds the
            question only, the answer is the choice itself; small models answer so better.
        listing: How the question is written where its choices are listed; must hold ``{question}`` and ``{choices}``,
            a line each.
        errors: Of MMLU-Redux, rows whose ``error_type`` is not ``ok``: ``left_out``, or ``corrected``, as C2C has it: a
            wrong key is corrected, and only rows are left out that have no right choice, need an expert, or do not say
            by index or letter which choice is right.
        hub_config: Configuration of a hub data set, such as ``ARC-Challenge``; ``*`` for all, one after the other.
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
        listing: str = LISTING,
        errors: str = "left_out",
        hub_config: str | None = None,
        validation_size: float = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        if answer_with not in ANSWERS:
            raise SettingError(f"answer_with={answer_with!r} must be one of {', '.join(ANSWERS)}.")
        for slot in ("{question}", "{choices}"):
            if listing.count(slot) != 1:
                raise SettingError(f"listing={listing!r} must hold {slot} exactly once.")
        if errors not in ERRORS:
            raise SettingError(f"errors={errors!r} must be one of {', '.join(ERRORS)}.")
        self.answer_with, self.listing, self.errors, self.hub_config = answer_with, listing, errors, hub_config

    def keep(self, row: dict[str, Any]) -> bool:
        error = row.get("error_type")
        if error in (None, "ok") or self.errors == "left_out" or error in _NO_KEY:
            return error in (None, "ok")
        return error != "wrong_groundtruth" or _correction(row, len(_choices(row)[0])) is not None

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        texts, labels = _choices(row)
        corrected = _correction(row, len(texts)) if row.get("error_type") == "wrong_groundtruth" else None
        answer = _answer(row, labels) if corrected is None else corrected
        question = str(row.get("question") or row["question_stem"]).strip()
        choices = texts
        if self.answer_with == "letter":
            choices = list(ascii_uppercase[: len(texts)])
            listed = [f"{letter}. {text}" for letter, text in zip(choices, texts, strict=True)]
            parts = {"{question}": question, "{choices}": "\n".join(listed)}
            question = re.sub("|".join(map(re.escape, parts)), lambda slot: parts[slot[0]], self.listing)
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


def _correction(row: dict[str, Any], choices: int) -> int | None:
    """The choice that a row's correction names, by index or by letter; null where it says neither."""
    given = next((row[name] for name in ("correct_answer", "corrected_answer") if row.get(name) is not None), "")
    key, letters = str(given).strip(), ascii_uppercase[:choices]
    index = int(key) if key.isdecimal() else letters.index(key) if len(key) == 1 and key in letters else choices
    return index if index < choices else None


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
