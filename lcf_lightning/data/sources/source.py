"""`Source`: where examples come from. One file per data set stands beside this one."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lcf_lightning.data.example import Example
from lcf_lightning.data.made_once import code_digest, digest_of, made_once
from lcf_lightning.data.partition import shuffled
from lcf_lightning.data.tables import hub_table, local_table
from lcf_lightning.errors import DataError, SettingError, first_cause, reason

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "validation", "test"]
_MALFORMED = (AttributeError, KeyError, TypeError, IndexError, ValueError)
_LARGE = 20_000  # rows; what a smaller table holds is found out anew in a second
_NAMED = 3  # rows that are left out and named


class Source(ABC):
    """Examples of one data set, with the split already decided who reads what.

    Attributes:
        mismatched: Whether in training a sharer reads what does not belong to the question.
    """

    mismatched = False

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        """The examples of a split; the same for the same seed.

        Raises:
            DataError: If the data cannot be found, read or understood.
        """


class RowExamples(Sequence[Example]):
    """Some rows of a table as examples, each made when it is asked for.

    Args:
        table: The rows, memory-mapped.
        source: Makes the examples.
        seed: Decides who reads what.
        places: Which rows, in this order.
    """

    def __init__(self, table: datasets.Dataset, source: RowSource, seed: int, places: Sequence[int]) -> None:
        self._table, self._source, self._seed = table, source, seed
        self._places = np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self._source.read(self._table[int(self._places[operator.index(index)])], self._seed)

    @property
    def key(self) -> str | None:
        """What these examples are a function of; None where that cannot be told."""
        own = self._source.key(self._table, self._seed)
        return own and digest_of(own, hashlib.sha256(self._places.tobytes()).hexdigest())


class RowSource(Source):
    """A data set of rows, on the hub or in local files; validation rows are held out of the training rows.

    A row of a training file that cannot be understood is left out, with a warning; one of a test file is an error.

    Args:
        train: Hub id (``owner/name``), or a local JSON lines or parquet file, possibly gzipped; null for none.
        test: The same, for the test split; null if that is the validation split.
        validation_size: Rows of the training split to hold out for validation, or, below 1, their fraction.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_config: str | None = None
    """Configuration of a hub data set; null for its only one, ``*`` for all, one after the other."""
    hub_splits: tuple[str, str] = ("train", "validation")
    loaders: Mapping[str, str] = {
        ".json": "json", ".jsonl": "json", ".json.gz": "json", ".jsonl.gz": "json", ".parquet": "parquet"
    }  # fmt: skip
    """By the suffix of a local file, what of `datasets` reads it."""

    def __init__(
        self,
        train: str | None,
        test: str | None,
        validation_size: float = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        for name, value in (("train_limit", train_limit), ("test_limit", test_limit)):
            if value is not None and value < 1:
                raise SettingError(f"{name}={value} must be at least 1, or null for no limit.")
        if validation_size <= 0 or (validation_size > 1 and validation_size % 1):
            raise SettingError(
                f"validation_size={validation_size} must be a number of rows of at least 1, or a fraction."
            )
        self.train, self.test, self.validation_size = train, test, validation_size
        self.train_limit, self.test_limit = train_limit, test_limit
        self._tables: dict[tuple[str, str], datasets.Dataset] = {}
        self._kept: dict[tuple[str, int], list[int]] = {}

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        if split == "test" and self.test is not None:
            table, kept = self._kept_rows("test", self.test, self.hub_splits[1], seed)
            places = kept[: self.test_limit]
        else:
            table, kept = self._kept_rows("train", self.train, self.hub_splits[0], seed)
            places = shuffled(kept, f"validation/{seed}")
            held_out = math.ceil(self.validation_size * (len(places) if self.validation_size < 1 else 1))
            places = places[held_out:][: self.train_limit] if split == "train" else places[:held_out]
            places = places[: self.test_limit] if split == "test" else places
        if not places:
            which = f"validation_size={self.validation_size} of {len(kept)} rows" if kept else "it has no rows"
            raise DataError(f"{split} split of {type(self).__name__} is empty: {which}; give more.")
        if split == "train":
            return RowExamples(table, self, seed, places)
        distinct = self._distinct(table, places, seed)
        if len(distinct) < len(places):
            repeated = len(places) - len(distinct)
            rank_zero_info(f"{split} split of {self}: {repeated} rows without an id repeat others; left out.")
        return RowExamples(table, self, seed, distinct)

    def __str__(self) -> str:
        locations = dict.fromkeys(at for at in (self.train, self.test) if at is not None)
        return f"{super().__str__()} ({', '.join(Path(at).name if Path(at).suffix else at for at in locations)})"

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row belongs to the data set as configured."""
        return True

    def hub_options(self, location: str) -> dict[str, str]:
        """What else of a data set of the hub `datasets.load_dataset` must know, such as its revision."""
        return {}

    @abstractmethod
    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        """The example of one row."""

    def read(self, row: dict[str, Any], seed: int) -> Example:
        """The example of one row, or a DataError that names the row."""
        try:
            return _complete(self.to_example(row, seed))
        except _MALFORMED as error:
            raise DataError(self._misunderstood(row, _problem(error))) from error

    def key(self, table: datasets.Dataset, seed: int) -> str | None:
        """What examples are a function of: the rows, the settings, the code. None where that cannot be told."""
        import datasets

        code = code_digest(type(self))
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        try:
            return code and digest_of(code, table._fingerprint, datasets.fingerprint.Hasher.hash(settings), seed)
        except (AttributeError, PicklingError, TypeError, ValueError):  # a setting of somebody's own
            return None

    def _distinct(self, table: datasets.Dataset, places: Sequence[int], seed: int) -> list[int]:
        """Those of some rows that have an id of their own, or do not ask what one before them asks."""
        seen: dict[str, int] = {}
        kept = []
        for place in places:
            row = table[place]
            example = self.read(row, seed)
            first = seen.setdefault(example.id, place)
            if first == place or _own_id(row) is not None or _asks(self.read(table[first], seed)) != _asks(example):
                kept.append(place)
        return kept

    def _kept_rows(
        self, setting: str, location: str | None, hub_split: str, seed: int
    ) -> tuple[datasets.Dataset, list[int]]:
        """All rows, memory-mapped, and which of them are understood and belong to the data set as configured.

        A row of a training file that cannot be understood is left out, and named. What is tested on is whole.
        """
        if location is None:
            raise DataError(f"{setting}=null of {type(self).__name__} must be a hub id or a file.")
        table = self._tables.get((location, hub_split))
        if table is None:
            table = self._tables[location, hub_split] = self._rows(setting, location, hub_split)
        kept = self._kept.get((setting, seed))
        if kept is None:
            kept = self._kept[setting, seed] = self._understood(setting, location, table, seed)
        return table, kept

    def _understood(self, setting: str, location: str, table: datasets.Dataset, seed: int) -> list[int]:
        """Places of the rows that are understood and belong to the data set as configured.

        Not `datasets`' own ``filter``, whose cache knows a method by its name: whoever changes ``keep`` in a file of
        their own would be given the rows that the old one kept.
        """

        def verdicts(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            columns = table[batch["place"]]
            rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            return {"problem": [self._verdict(row, seed) for row in rows]}

        key = self.key(table, seed) if len(table) >= _LARGE else None
        if key is None:
            found = verdicts({"place": list(range(len(table)))})["problem"] if len(table) else []
        else:
            import datasets

            found = made_once("rows", range(len(table)), verdicts, {"problem": datasets.Value("string")}, key)[:][
                "problem"
            ]
        kept = [place for place, problem in enumerate(found) if problem == ""]
        bad = [place for place, problem in enumerate(found) if problem]
        tested = setting == "test" and bad and sum(place < bad[0] for place in kept) < (self.test_limit or len(table))
        if tested or (bad and not kept):
            raise DataError(self._misunderstood(table[bad[0]], found[bad[0]]))
        if bad:
            named = "; ".join(f"row {place}: {found[place]}" for place in bad[:_NAMED])
            more = "; …" if len(bad) > _NAMED else ""
            rank_zero_warn(
                f"{setting}={location!r}: {len(bad)} of {len(table)} rows cannot be understood and are left out, "
                f"counted from 0: {named}{more}"
            )
        return kept

    def _verdict(self, row: dict[str, Any], seed: int) -> str | None:
        """What is wrong with a row, empty where nothing is; None if it does not belong to the data set."""
        try:
            if not self.keep(row):
                return None
            _complete(self.to_example(row, seed))
        except _MALFORMED as error:
            return _problem(error)
        return ""

    def _misunderstood(self, row: dict[str, Any], problem: str) -> str:
        return f"{type(self).__name__} cannot understand row {row.get('id', '?')!r}: {problem}."

    def _rows(self, setting: str, location: str, hub_split: str) -> datasets.Dataset:
        import datasets

        suffix = next((suffix for suffix in self.loaders if location.endswith(suffix)), None)
        if suffix is not None and not Path(location).is_file():
            raise DataError(f"{setting}={location!r} is not a file; give a hub id (owner/name) or an existing file.")
        if suffix is None and (Path(location).exists() or location.count("/") != 1):
            raise DataError(
                f"{setting}={location!r} must be a hub id (owner/name) or a {', '.join(self.loaders)} file."
            )
        broken = (OSError, EOFError, StopIteration, ValueError, RecursionError, datasets.exceptions.DatasetsError)
        try:
            if suffix is not None:
                return local_table(Path(location), self.loaders[suffix], hub_split)
            return hub_table(location, self.hub_config, hub_split, **self.hub_options(location))
        except broken as error:
            raise DataError(f"{setting}={location!r} cannot be read: {reason(first_cause(error))}") from error


def row_id(row: dict[str, Any], *content: Any) -> str:
    """The row's own ``id`` or ``question_id``; where it has none, a digest of its ``content``."""
    own = _own_id(row)
    return str(own) if own is not None else hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _own_id(row: dict[str, Any]) -> Any:
    return next((row[name] for name in ("id", "question_id") if row.get(name) is not None), None)


def _asks(example: Example) -> tuple[Any, ...]:
    """All that is read of an example before it is answered."""
    return example.question, example.choices, example.history, example.shared, example.sharer, example.receiver


def _problem(error: Exception) -> str:
    return f"{type(error).__name__} {error}"


def _complete(example: Example) -> Example:
    """``example``, if question and answers are text: a field that only some rows have reads as None in the others."""
    if not all(isinstance(text, str) for text in (example.question, *example.answers)):
        raise TypeError(f"question={example.question!r} and answers={example.answers!r} must be text")
    return example
