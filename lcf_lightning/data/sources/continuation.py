"""Texts to go on with: what the sharer has read the beginning of, the receiver is to continue."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import split_sentences
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import DataError, SettingError


class Continuation(Source):
    """The passages of another source, cut in two: the sharer reads the first half, and the rest is the answer.

    A passage is cut between two sentences, or between two words where it is a single sentence; of an odd number the
    sharer reads one more. A split's examples are made of the passages of the other source's split of that name, each
    text once, whoever reads it there; a text that two of its splits hold is in both. The receiver reads nothing but the
    question, which is the same everywhere.

    Args:
        source: Whose passages to take; its questions and answers are not used.
        min_words: Leave out passages of fewer words.
        question: What the receiver is asked. It may be empty where ``prompts.question`` has words of its own: a prompt
            without any token cannot be read.

    Raises:
        SettingError: If ``min_words`` is below 2.
    """

    def __init__(self, source: Source, min_words: int = 40, question: str = "Continue the text.") -> None:
        if min_words < 2:
            raise SettingError(f"min_words={min_words} must be at least 2.")
        self.source, self.min_words, self.question = source, min_words, question

    def __str__(self) -> str:
        return f"Continuation of {self.source}"

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        texts = dict.fromkeys(
            "".join(passage).strip()
            for example in self.source.examples(split, seed)
            for passage in (*example.sharer, *example.receiver, *example.shared)
        )
        found = [self._continued(text, seed) for text in texts if len(text.split()) >= self.min_words]
        if not found:
            raise DataError(f"{split} split of {self} is empty: no passage has min_words={self.min_words} words.")
        return found

    def _continued(self, text: str, seed: int) -> Example:
        """The example of one text."""
        pieces = split_sentences(text)
        if len(pieces) == 1:
            pieces = re.findall(r"\s*\S+", text)
        half = (len(pieces) + 1) // 2
        return Example(
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            question=self.question,
            answers=("".join(pieces[half:]).strip(),),
            sharer=(tuple(pieces[:half]),),
            partition={"mode": "continuation", "seed": seed},
            open_ended=True,  # many texts would do
        )
