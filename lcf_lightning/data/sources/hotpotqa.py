"""HotpotQA, distractor setting (Yang et al. 2018): ten paragraphs, two of which hold the answer together."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import checked_distractors, partition, with_distractors
from lcf_lightning.data.sources.source import RowSource
from lcf_lightning.errors import SettingError


class HotpotQA(RowSource):
    """Multi-hop questions with one supporting paragraph on each side, as in the LCF paper.

    Args:
        train: Hub id or local file, in the hub's shape or in the original one.
        test: The same, for the test split; on the hub, the validation split (HotpotQA's test has no answers).
        distractors: How many of the other paragraphs to keep, divided evenly; null for all (5+5, the paper), 0 for
            the two supporting paragraphs only.
        question_type: Keep only ``bridge`` (the paper) or ``comparison`` questions; null for both.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_config: str | None = "distractor"

    def __init__(
        self,
        train: str = "hotpotqa/hotpot_qa",
        test: str = "hotpotqa/hotpot_qa",
        distractors: int | None = None,
        question_type: str | None = "bridge",
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        if question_type not in (None, "bridge", "comparison"):
            raise SettingError(f"question_type={question_type!r} must be bridge, comparison or null.")
        self.distractors, self.question_type = checked_distractors(distractors), question_type

    def keep(self, row: dict[str, Any]) -> bool:
        return self.question_type in (None, row["type"])

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        paragraphs = _paragraphs(row["context"])
        gold_titles = _gold_titles(row)
        key = f"hotpotqa/{seed}/{row['id']}"
        gold = [i for i, (title, _) in enumerate(paragraphs) if title in gold_titles]
        if not gold:
            raise KeyError(f"supporting titles {sorted(gold_titles)} in context")
        chosen = with_distractors(len(paragraphs), gold, self.distractors, key)
        passages = [(f"{paragraphs[i][0]}: ", *paragraphs[i][1]) for i in chosen]
        sharer, receiver = partition(passages, [chosen.index(i) for i in gold], "split", key)
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=(row["answer"],),
            sharer=sharer,
            receiver=receiver,
            partition={"mode": "split", "seed": seed, "distractors": self.distractors},
        )


def _gold_titles(row: dict[str, Any]) -> set[str]:
    """Titles of the supporting paragraphs, given as such, in the hub's shape or in the original one."""
    facts = row.get("supporting_titles") or row["supporting_facts"]
    if isinstance(facts, dict):
        return set(facts["title"])
    return {fact if isinstance(fact, str) else fact[0] for fact in facts}


def _paragraphs(context: Any) -> list[tuple[str, list[str]]]:
    """``(title, sentences)`` from the hub's shape (a dict of lists) or the original one (a list of pairs)."""
    if isinstance(context, dict):
        return list(zip(context["title"], context["sentences"], strict=True))
    return [(title, sentences) for title, sentences in context]
