"""What the tiny expert knows by heart: one value for every relation and name of the embedded world.

The facts stand in the expert's weights and in no text, so a sharer that is the expert knows what a receiver that reads
the same question does not. No fact is in two splits: an adapter that learned the training facts itself knows none of
the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lcf_lightning.data.example import Example
from lcf_lightning.data.partition import shuffled
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.data.sources.world import NAMES, RELATIONS, VALUES
from lcf_lightning.errors import SettingError

FACTS = tuple(
    (relation, name, random.Random(f"knowledge/{relation}/{name}").choice(VALUES))
    for relation in RELATIONS
    for name in NAMES
)
"""The facts, one for each relation and name; fixed, since the expert was trained on them."""


class Knowledge(Source):
    """Questions about facts that only the expert knows.

    Args:
        choices: Values to choose from, the right one among them; 0 for an open question.
        validation_size: Facts of the validation split.
        test_size: Facts of the test split; all others are for training.

    Raises:
        SettingError: If a number is out of range.
    """

    def __init__(self, choices: int = 4, validation_size: int = 64, test_size: int = 128) -> None:
        if choices != 0 and not 2 <= choices <= len(VALUES):
            raise SettingError(f"choices={choices} must be 0, or between 2 and {len(VALUES)}.")
        if validation_size < 1 or test_size < 1 or validation_size + test_size >= len(FACTS):
            raise SettingError(
                f"validation_size={validation_size} and test_size={test_size} must be at least 1 and leave some of the "
                f"{len(FACTS)} facts for training."
            )
        self.choices, self.validation_size, self.test_size = choices, validation_size, test_size

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        facts = shuffled(FACTS, f"knowledge/{seed}")
        held_out = self.validation_size + self.test_size
        parts = {
            "validation": facts[: self.validation_size],
            "test": facts[self.validation_size : held_out],
            "train": facts[held_out:],
        }
        return [self._example(fact, seed) for fact in parts[split]]

    def _example(self, fact: tuple[str, str, str], seed: int) -> Example:
        relation, name, value = fact
        others = shuffled([other for other in VALUES if other != value], f"choices/{seed}/{relation}/{name}")
        choices = sorted([value, *others[: self.choices - 1]]) if self.choices else []
        return Example(
            id=f"knowledge/{relation}/{name}",
            question=f"{relation} {name}",
            answers=(value,),
            choices=tuple(choices),
        )
