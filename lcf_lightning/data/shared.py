"""`SharedCollator`: batches of examples that both models read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from lcf_lightning.data.alignment import Indexes, align, align_places, padded_places, require_one_vocabulary
from lcf_lightning.data.batch import Collator
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.tokens import Encoded, Tokens, Written, pad_left
from lcf_lightning.errors import SettingError
from lcf_lightning.host import Extent


@dataclass(frozen=True)
class SharedCollator(Collator):
    """Writes each example once for both models of a pair that reads the same text, and aligns their tokens.

    Attributes:
        keeps: Whether prompts and alignments are kept, for the epochs to come.
    """

    keeps: bool = False

    def __post_init__(self) -> None:
        if self.sharer.settings.sharers != 1:
            raise SettingError(
                f"sharers={self.sharer.settings.sharers} must be 1 where both models read the same text."
            )
        for name in ("reread", "send_tokens"):
            value = getattr(self.sharer.settings, name)
            if value is not None:
                raise SettingError(f"{name}={value!r} must be null where both models read the same text.")
        if self.reader is self.receiver:
            require_one_vocabulary(self.sharer.tokenizer, self.receiver.tokenizer)

    @property
    def reader(self) -> PromptEncoder:
        """What writes the sharer's prompts: its own encoder, or the receiver's (``prompts.sharer_reads``)."""
        return self.sharer if self.sharer.settings.sharer_reads == "own" else self.receiver

    def write(self, example: Example, sharers: int) -> Written:
        sharer, receiver, index = (_kept if self.keeps else _aligned)(self, example)
        return Written([sharer], receiver, self._answer(example), index)

    def fits(self, example: Example, written: Written) -> bool:
        """Whether both models' prompts of an example, alone and with its answer, keep to their limits."""
        settings, answer = self.sharer.settings, example.answers[0]
        sides = (
            (self.reader, written.sharers[0], settings.max_sharer_tokens),
            (self.receiver, written.receiver, settings.max_receiver_tokens),
        )
        return all(side.fits(prompt, answer, limit) for side, prompt, limit in sides)

    def _sharers(self, written: Sequence[Written]) -> tuple[Tokens, Tensor, Extent]:
        tokens = pad_left([row.sharers[0] for row in written], self.reader.pad_id)
        index = [row.index[: row.receiver.ahead] for row in written if row.index is not None]
        places = padded_places(index, tokens.mask)  # the rest is read on the edited cache
        return tokens, places, Extent(spans=0, tokens=places.shape[1])

    def sharer_tokens(self, example: Example) -> int:
        return len(self.reader.shared_prompt(example)[0].ids)

    def form(self, example: Example) -> tuple[int, ...]:
        """How many choices, earlier turns, and lines of each content an example has.

        Of two examples of one form a message keeps its lines: see `align_places`.
        """
        lines = [content.count("\n") for content in self.reader.contents(example)]
        return len(example.choices), len(example.history), *lines

    def message_of(
        self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]], to: Sequence[Example]
    ) -> tuple[Tokens, Tensor]:
        # Another example's text has no character in common with the receiver's: only the place is left.
        prompts, index = [], []
        for example, own in zip(examples, to, strict=True):
            prompt, said = self.reader.shared_prompt(example)
            receiver, read = self.receiver.shared_prompt(own)
            places = align_places(said, self.reader.contents(example), read, self.receiver.contents(own))
            prompts.append(prompt)
            index.append(places[: receiver.ahead])  # as in training, the rest counts, though it is not edited
        tokens = pad_left(prompts, self.reader.pad_id)
        return tokens, padded_places(index, tokens.mask)


def read_alike(collator: Collator) -> SharedCollator:
    """What writes a pair's examples as if both models read the same text."""
    settings = replace(collator.sharer.settings, sharers=1, reread=None, send_tokens=None)
    shared = SharedCollator.of(settings, collator.sharer.tokenizer, collator.receiver.tokenizer)
    assert isinstance(shared, SharedCollator)
    return shared


def _aligned(collator: SharedCollator, example: Example) -> tuple[Encoded, Encoded, Indexes]:
    """Both prompts of an example, and the sharer token of every receiver token."""
    sharer, sharer_layout = collator.reader.shared_prompt(example)
    receiver, receiver_layout = collator.receiver.shared_prompt(example)
    return sharer, receiver, align(sharer_layout, receiver_layout, collator.sharer.settings.alignment)


_kept = lru_cache(maxsize=4_096)(_aligned)
