"""A control for training: nobody's message is about what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import mismatched_partners, sharer_text
from lcf_lightning.data.sources.source import Source, Split


class Mismatched(Source):
    """Another source's examples whose sharers, in training, have read another example's passages.

    An adapter trained so has the same parameters, steps and questions, and messages that say no more of an answer than
    chance: what it gains over own context is tuning. Validation and test are the other source's, unchanged.

    Args:
        source: Where the examples come from; for `ContextMismatchDataModule` only.

    Raises:
        DataError: If all training examples' sharers read the same.
    """

    mismatched = True

    def __init__(self, source: Source) -> None:
        self.source = source

    def __str__(self) -> str:
        return f"Mismatched {self.source}"

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        examples = self.source.examples(split, seed)
        if split != "train":
            return examples
        examples = list(examples)  # some sources make each when it is asked for
        words = [sum(len(sentence.split()) for sentence in sharer_text(example)) for example in examples]
        partners = mismatched_partners(examples, words, seed)
        return [
            replace(example, shared=(), sharer=examples[at].sharer_reads, receiver=example.receiver_reads)
            for example, at in zip(examples, partners, strict=True)
        ]
