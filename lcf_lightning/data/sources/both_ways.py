"""Twice the training examples from the same passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcf_lightning.data.example import Example
from lcf_lightning.data.sources.source import Source, Split


class BothWays(Source):
    """Another source's training examples, and each of them once more with what sharer and receiver read exchanged.

    For rows whose passages are dealt to either side by chance, such as HotpotQA's. Validation and test are the other
    source's, unchanged.

    Args:
        source: Where the examples come from; for `ContextMismatchDataModule` only.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.mismatched = source.mismatched

    def __str__(self) -> str:
        return f"{self.source}, both ways"

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        examples = self.source.examples(split, seed)
        return examples if split != "train" else [*examples, *map(_exchanged, examples)]


def _exchanged(example: Example) -> Example:
    return replace(example, id=f"{example.id}/exchanged", sharer=example.receiver, receiver=example.sharer)
