"""`JsonLines`: your own rows, a JSON object a line, in which it stands who reads what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.parsing import parse_passages, spaced
from lcf_lightning.data.sources.source import RowSource, row_id
from lcf_lightning.errors import DataError

if TYPE_CHECKING:
    import datasets


class JsonLines(RowSource):
    """Rows with the fields ``question``, ``answers``, ``sharer`` and ``receiver``; perhaps ``id`` and ``needs_sharer``.

    - ``question``: a text.
    - ``answers``: a text, or a list of texts, all of which are right; the first is trained on.
    - ``sharer``: what the sharer alone reads: a text, whose lines are its passages, or a list of passages. A passage is
      a text, or a list of its sentences, which are read with a blank between them.
    - ``receiver``: what the receiver alone reads, likewise; ``[]`` for nothing.
    - ``id``: a text or a whole number, another in each row; by default a digest of the row.
    - ``needs_sharer``: false where ``receiver`` alone answers the question; by default true.

    Lines may be blank; one that is no such row is refused.

    Args:
        train: A ``.jsonl`` or ``.json`` file, gzipped or not.
        test: The same, for the test split; null if that is the validation split.
        validation_size: Rows of the training file to hold out for validation, or, below 1, their fraction.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    loaders: Mapping[str, str] = {
        ".json": "text", ".jsonl": "text", ".json.gz": "text", ".jsonl.gz": "text"
    }  # fmt: skip

    def __init__(
        self,
        train: str,
        test: str | None = None,
        validation_size: float = 0.1,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        fields = _fields(row["text"])
        question, answers = fields["question"], fields["answers"]
        sharer, receiver = _passages(fields["sharer"]), _passages(fields["receiver"])
        return Example(
            id=row_id(fields, question, sharer, receiver),
            question=question,
            answers=(answers,) if isinstance(answers, str) else tuple(dict.fromkeys(answers)),
            sharer=sharer,
            receiver=receiver,
            needs_sharer=fields.get("needs_sharer", True),
        )

    def _rows(self, setting: str, location: str, hub_split: str) -> datasets.Dataset:
        """The lines that are not blank, as text: no table holds a text in one row and a list in another."""
        if not Path(location).is_file() or not location.endswith(tuple(self.loaders)):
            raise DataError(f"{setting}={location!r} must be an existing file, {', '.join(self.loaders)}.")
        table = super()._rows(setting, location, hub_split)
        ids: dict[int, str | None] = {}
        for place, row in enumerate(table):
            if row["text"].strip():
                try:
                    own = _fields(row["text"]).get("id")
                except ValueError as error:
                    raise DataError(f"{setting}={location!r}, line {place + 1}: {error}.") from error
                ids[place] = None if own is None else str(own)
        return table.add_column("id", [ids.get(place) for place in range(len(table))]).select(list(ids))


def _fields(line: str) -> dict[str, Any]:
    """The fields of a row; a ValueError says which is not as it must be."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("this is no JSON: it is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a row must be an object with the fields {', '.join(_NEEDED)}, not {line:.40}")
    for name in _NEEDED:
        if name not in fields:
            raise ValueError(f"field {name!r} is missing; a row needs {', '.join(_NEEDED)}")
    for name, value in fields.items():
        if name not in _ALLOWED:
            raise ValueError(f"field {name!r} is unknown; a row holds {', '.join(_ALLOWED)}")
        holds, allowed = _ALLOWED[name]
        if not holds(value):
            raise ValueError(f"{name}={value!r:.60} must be {allowed}")
    return fields


def _passages(given: Any) -> tuple[Passage, ...]:
    if isinstance(given, str):
        return parse_passages(given)
    each = (parse_passages([part]) if isinstance(part, str) else (spaced(part),) for part in given)
    return tuple(chain.from_iterable(each))


def _is_text(value: Any) -> bool:
    """Whether it is a text that says something; half of a surrogate pair is a character that no tokenizer knows."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_passages(value: Any) -> bool:
    listed = isinstance(value, list) and bool(value) and all(_is_text(part) or _are_texts(part) for part in value)
    return _is_text(value) or listed


_PASSAGES = "a text, or a list of passages: texts, or lists of sentences"
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "question": (_is_text, "a text"),
    "answers": (lambda value: _is_text(value) or _are_texts(value), "a text, or a list of texts"),
    "sharer": (_are_passages, _PASSAGES),
    "receiver": (lambda value: value in ("", []) or _are_passages(value), f"{_PASSAGES}; [] for nothing"),
    "id": (lambda value: _is_text(value) or type(value) is int, "a text or a whole number"),
    "needs_sharer": (lambda value: isinstance(value, bool), "true or false"),
}
"""By field, what it may be, and that in words."""
_NEEDED = ("question", "answers", "sharer", "receiver")
