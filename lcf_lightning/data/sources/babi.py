"""bAbI tasks 1-3 (Weston et al. 2015): where somebody or something is, after a story of short sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import checked_mode, partition
from lcf_lightning.data.sources.source import RowSource
from lcf_lightning.errors import SettingError

if TYPE_CHECKING:
    import datasets

HUB = "facebook/babi_qa"


class BAbI(RowSource):
    """Stories whose sentences two readers divide, in order.

    Args:
        train: The hub's bAbI, 10,000 questions a task, or a local file with ``id``, ``task``, ``story``, ``question``,
            ``answer`` and ``supporting``.
        test: The same, for the test split.
        task: ``qa1``, ``qa2`` or ``qa3``.
        partition: ``split``: half of the sentences each, the supporting one with the sharer. ``sharer``: the sharer
            reads the whole story, the receiver nothing.
        validation_size: Rows of the training split to hold out for validation.
        train_limit: Use at most so many training rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    hub_splits = ("train", "test")

    def __init__(
        self,
        train: str = HUB,
        test: str = HUB,
        task: str = "qa1",
        partition: str = "sharer",
        validation_size: int = 128,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, train_limit, test_limit)
        if task not in ("qa1", "qa2", "qa3"):
            raise SettingError(f"task={task!r} must be qa1, qa2 or qa3.")
        self.task, self.partition = task, checked_mode(partition)

    def hub_options(self, location: str) -> dict[str, str]:
        """This data set came with code, which nothing runs any more; the hub keeps its rows on a branch apart."""
        return {"data_dir": f"en-10k-{self.task}", "revision": "refs/convert/parquet"} if location == HUB else {}

    def _rows(self, setting: str, location: str, hub_split: str) -> datasets.Dataset:
        table = super()._rows(setting, location, hub_split)
        if location != HUB:
            return table
        import datasets

        rows = [row for story in table["story"] for row in _questions(story)]
        named = [{"id": f"babi/{self.task}/{hub_split}/{n}", "task": self.task, **row} for n, row in enumerate(rows)]
        return datasets.Dataset.from_list(named)

    def keep(self, row: dict[str, Any]) -> bool:
        return bool(row["task"] == self.task)

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        story = [(sentence,) for sentence in row["story"]]
        sharer, receiver = partition(story, row["supporting"], self.partition, f"babi/{seed}/{row['id']}")
        return Example(
            id=str(row["id"]),
            question=row["question"],
            answers=(row["answer"],),
            sharer=sharer,
            receiver=receiver,
            partition={"mode": self.partition, "seed": seed},
        )


def _questions(story: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Each question of a story of the hub's, with all sentences before it, and the places of those that answer it."""
    places: dict[str, int] = {}
    sentences: list[str] = []
    columns = (story[name] for name in ("id", "type", "text", "supporting_ids", "answer"))
    for line, kind, text, supporting, answer in zip(*columns, strict=True):
        if kind == 0:  # a sentence of the story
            places[line] = len(sentences)
            sentences.append(text)
        else:
            found = [places[id] for id in supporting]
            yield {"story": list(sentences), "question": text, "answer": answer, "supporting": found}
