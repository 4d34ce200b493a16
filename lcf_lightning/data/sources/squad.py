"""SQuAD v1.1 (Rajpurkar et al. 2016): a question about one paragraph, whose sentences two readers divide."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import split_sentences
from lcf_lightning.data.partition import checked_mode, partition
from lcf_lightning.data.sources.source import RowSource


class SQuAD(RowSource):
    """Questions whose answer stands in one sentence, which the sharer reads.

    Args:
        train: Hub id or local file, in the hub's shape or with ``answers`` and ``answer_start`` as lists.
        test: The same, for the test split.
        partition: ``split``: half of the sentences each, the answer's with the sharer. ``sharer``: the sharer reads
            the whole paragraph, the receiver nothing.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    def __init__(
        self,
        train: str = "rajpurkar/squad",
        test: str = "rajpurkar/squad",
        partition: str = "split",
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        self.partition = checked_mode(partition)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        answers = row["answers"]
        if not isinstance(answers, dict):  # the local shape; the hub nests both lists
            answers = {"text": answers, "answer_start": row["answer_start"]}
        sentences = split_sentences(row["context"])
        start, length = answers["answer_start"][0], len(answers["text"][0])
        first, last = _sentence_at(sentences, start), _sentence_at(sentences, start + max(length, 1) - 1)
        # An answer that a sentence break cuts ("Rev. Corby") must not be divided between the two sides.
        sentences[first : last + 1] = ["".join(sentences[first : last + 1])]
        sharer, receiver = partition(
            [(sentence,) for sentence in sentences], [first], self.partition, f"squad/{seed}/{row['id']}"
        )
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=tuple(dict.fromkeys(answers["text"])),
            sharer=sharer,
            receiver=receiver,
            partition={"mode": self.partition, "seed": seed},
        )


def _sentence_at(sentences: list[str], offset: int) -> int:
    end = 0
    for index, sentence in enumerate(sentences):
        end += len(sentence)
        if offset < end:
            return index
    raise IndexError(f"answer_start {offset} is beyond the context's {end} characters")
