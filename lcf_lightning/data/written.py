"""Examples as tokens: written once, kept, and looked through until enough fit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lcf_lightning.data.batch import Collator
from lcf_lightning.data.checks import require_read_by_both
from lcf_lightning.data.example import Example
from lcf_lightning.data.made_once import digest_of, made_once, tokenizer_digest
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.data.tokens import Encoded, Written
from lcf_lightning.errors import DataError

if TYPE_CHECKING:
    import datasets

CHUNK = 8_192  # examples that are written, kept and looked through together
_NAMED = 3  # examples that are left out and named
_LONG = "it is too long"
_NOTHING = Written([], Encoded([], []), [])


class WrittenExamples(Dataset[tuple[Example, Written]]):
    """Those of some examples that fit, with their tokens.

    Args:
        examples: All of them.
        places: Which of them fit, in the order in which they were looked through.
        table: A row for each that was looked through.
        rows: The rows of those that fit.

    Attributes:
        tokens: ``[places]``, int32: each one's tokens, those of both models' prompts and of the answer.
        sharer_tokens: ``[places]``, int32: those of its sharers alone.
    """

    def __init__(
        self, examples: Sequence[Example], places: NDArray[np.int64], table: datasets.Dataset, rows: NDArray[np.int64]
    ) -> None:
        self._examples, self._table, self._rows = examples, table, rows
        self.places = places
        self.tokens = _column(table, "tokens")[rows]
        self.sharer_tokens = _column(table, "sharer_tokens")[rows]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Example, Written]:
        example, row = self._examples[int(self.places[index])], self._table[int(self._rows[index])]
        if row["text"] != _digest(example):
            raise DataError(
                f"the tokens that are kept of {example.id!r} are of another text: code that its source calls has "
                f"changed; delete {self._table.cache_files[0]['filename'].rpartition('/')[0]!r}."
            )
        return example, _from_row(row)


class Writing:
    """Makes rows of tokens of examples at some places; can be sent to other processes.

    Args:
        examples: A split.
        collator: Writes them.
        source: What the source is called.
    """

    def __init__(self, examples: Sequence[Example], collator: Collator, source: str) -> None:
        self.examples, self.collator, self.source = examples, collator, source

    @property
    def key(self) -> str | None:
        """What the rows are a function of, besides their places; None where that cannot be told."""
        own = getattr(self.examples, "key", None)  # of `RowExamples`
        sides = (self.collator.sharer, self.collator.receiver) if own else ()
        digests = [tokenizer_digest(side.tokenizer) for side in sides]
        return own and digest_of(own, type(self.collator).__name__, asdict(self.collator.sharer.settings), digests)

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self._row(self.examples[place]) for place in batch["place"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, example: Example) -> dict[str, Any]:
        if isinstance(self.collator, SharedCollator):
            require_read_by_both(self.source, [example])
        try:
            written = self.collator.write_for_training(example)
        except (TypeError, ValueError) as error:  # a text that a tokenizer or a chat template does not take
            return _to_row(_NOTHING, example, f"{example.id!r}: {error}")
        fits = self.collator.fits(example, written)
        return _to_row(written, example, "") if fits else _to_row(_NOTHING, example, _LONG)


def write_all(
    make: Writing, split: str, order: Sequence[int], enough: int | None = None, processes: int = 0
) -> WrittenExamples:
    """Write examples as tokens, chunk by chunk, until enough of them fit.

    Where the examples say what they are a function of (`RowExamples`), tokens are kept on disk, for other ranks and
    later starts; a start that is killed loses a chunk at most. An example that cannot be written is left out, counted
    and named.

    Args:
        make: Writes them.
        split: Its name.
        order: The places of all examples, in the order in which they are looked through.
        enough: How many are needed; null for all.
        processes: Processes that write what is kept on disk.

    Raises:
        DataError: If none is left.
    """
    import datasets

    key, tables, problems, fitting = make.key, [], [], 0
    for start in range(0, len(order), CHUNK):
        tables.append(made_once(f"{split} tokens", order[start : start + CHUNK], make, _features(), key, processes))
        problems += tables[-1].select_columns("problem")[:]["problem"]
        fitting = problems.count("")
        if enough is not None and fitting >= enough:
            break
    _tell(split, problems)
    rows = np.array([row for row, problem in enumerate(problems) if not problem], np.int64)[:enough]
    places = np.asarray(order[: len(problems)], np.int64)[rows]
    return WrittenExamples(make.examples, places, datasets.concatenate_datasets(tables), rows)


def _tell(split: str, problems: Sequence[str]) -> None:
    """Say how many examples were left out, and why; a DataError if all were."""
    long, wrong = problems.count(_LONG), [problem for problem in problems if problem not in ("", _LONG)]
    if "" not in problems:
        if not wrong:
            raise DataError(f"{split} split: all {len(problems)} examples exceed the token limits of prompts.")
        also = f", and the other {long} exceed the token limits of prompts" if long else ""
        raise DataError(f"{split} split: {len(wrong)} of {len(problems)} examples cannot be written{also}; {wrong[0]}.")
    if long:
        rank_zero_info(f"{split} split: {long} of {len(problems)} examples are too long.")
    if wrong:
        named = "; ".join(wrong[:_NAMED]) + ("; …" if len(wrong) > _NAMED else "")
        rank_zero_warn(f"{split} split: {len(wrong)} of {len(problems)} examples cannot be written, left out: {named}")


def _digest(example: Example) -> int:
    """64 bits of all that an example says."""
    return int.from_bytes(hashlib.blake2b(repr(example).encode(), digest_size=8).digest(), "big", signed=True)


def _column(table: datasets.Dataset, name: str) -> NDArray[np.int32]:
    column: NDArray[np.int32] = table.data.column(name).to_numpy()
    return column


def _features() -> dict[str, Any]:
    from datasets import List, Value

    ids, count = List(Value("int32")), Value("int32")
    prompt = {"ids": ids, "spans": ids, "dropped": count, "begun": count}
    return {
        "text": Value("int64"), "problem": Value("string"), "tokens": count, "sharer_tokens": count,
        "sharers": List(prompt), "receiver": prompt, "answer": ids, "index": ids,
    }  # fmt: skip


def _to_row(written: Written, example: Example, problem: str) -> dict[str, Any]:
    return {
        "text": _digest(example),
        "problem": problem,
        "tokens": written.tokens,
        "sharer_tokens": sum(len(prompt.ids) for prompt in written.sharers),
        "sharers": [vars(prompt) for prompt in written.sharers],
        "receiver": vars(written.receiver),
        "answer": written.answer,
        "index": written.index,
    }


def _from_row(row: dict[str, Any]) -> Written:
    index = None if row["index"] is None else np.asarray(row["index"], np.int64)
    sharers = [Encoded(**prompt) for prompt in row["sharers"]]
    return Written(sharers, Encoded(**row["receiver"]), row["answer"], index)
