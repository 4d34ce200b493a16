"""MuSiQue, answerable questions (Trivedi et al. 2022): twenty paragraphs, two to four of which hold the answer."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import split_sentences
from lcf_lightning.data.partition import checked_distractors, partition, with_distractors
from lcf_lightning.data.sources.source import RowSource


class MuSiQue(RowSource):
    """Multi-hop questions whose supporting paragraphs are dealt to the two sides in turn.

    A row holds ``id``, ``question``, ``answer``, perhaps ``answer_aliases``, ``context`` as pairs of title and
    paragraph, and ``supporting``, the places of the supporting paragraphs in it, counted from 0.

    Args:
        train: Hub id or local file; null for none.
        test: The same, for the test split.
        distractors: How many of the other paragraphs to keep, divided evenly; null for all, 0 for the supporting
            paragraphs only.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    def __init__(
        self,
        *,
        train: str | None = None,
        test: str,
        distractors: int | None = None,
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        self.distractors = checked_distractors(distractors)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        context, gold = row["context"], sorted(set(row["supporting"]))
        if not gold or gold[0] < 0 or gold[-1] >= len(context):
            raise IndexError(f"supporting={gold} must be places in a context of {len(context)} paragraphs")
        key = f"musique/{seed}/{row['id']}"
        chosen = with_distractors(len(context), gold, self.distractors, key)
        # Some files hold a paragraph as a text, some as a list of one; joined, both are that text.
        texts = [(context[i][0], "".join(context[i][1])) for i in chosen]
        passages = [(f"{title}: ", *split_sentences(text)) for title, text in texts]
        sharer, receiver = partition(passages, [chosen.index(i) for i in gold], "split", key)
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=tuple(dict.fromkeys((row["answer"], *(row.get("answer_aliases") or ())))),
            sharer=sharer,
            receiver=receiver,
            partition={"mode": "split", "seed": seed, "distractors": self.distractors},
        )
