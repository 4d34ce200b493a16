"""The embedded world: short facts ``relation name value .`` that two readers hold between them.

Everything is generated from a seed, so this source needs no file and no network. Example ``i`` of a split is a pure
function of ``(seed, split, i)``; no two splits share a stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import SettingError

RELATIONS = ("likes", "owns", "seeks", "draws", "fears", "sells", "finds", "hides")
_NAMES = """
    ada ben cleo dan eva finn gia hugo ida jack kira liam mona nils olga paul quinn rosa sam tara uma vera will xena
    yuri zoe abel bela cara dino elsa fred gwen hans iris joel kate leon mia noah opal pete rhea seth tess ugo vito
    wren yara zack alma bruno cora dora emil faye gus hedda ivo june karl lena milo
"""
_VALUES = """
    apple pear plum peach grape melon lemon cherry tea coffee milk juice bread rice soup cake chair table lamp clock
    mirror carpet basket bottle hammer ladder rope nail brush bucket shovel needle boat train tram bike sled kite drum
    flute piano violin harp bell gold silver pearl coral amber jade ruby topaz fox otter heron crow wolf deer mole swan
    tulip rose lily
"""
NAMES, VALUES = tuple(_NAMES.split()), tuple(_VALUES.split())
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
MARKERS = (".", "?", "question", "message")
VOCABULARY = SPECIAL_TOKENS + MARKERS + RELATIONS + NAMES + VALUES


def draw_facts(rng: random.Random, count: int) -> list[tuple[str, str, str]]:
    """``count`` facts ``(relation, name, value)`` in which no name occurs twice."""
    return [(rng.choice(RELATIONS), name, rng.choice(VALUES)) for name in rng.sample(NAMES, count)]


def fact_text(fact: tuple[str, str, str]) -> str:
    """The fact as the tiny models read it: ``relation name value .``"""
    return " ".join((*fact, "."))


class World(Source):
    """The embedded world as a source.

    Args:
        sharer_facts: Facts only the sharer reads (at least 1).
        receiver_facts: Facts only the receiver reads (at least 0).
        own_questions: Fraction of the questions that the receiver's own facts answer, in [0, 1].
        train_size: Training examples.
        validation_size: Validation examples.
        test_size: Test examples.

    Raises:
        SettingError: If a count or the fraction is out of range.
    """

    def __init__(
        self,
        sharer_facts: int = 4,
        receiver_facts: int = 3,
        own_questions: float = 0.25,
        train_size: int = 76_800,
        validation_size: int = 512,
        test_size: int = 1024,
    ) -> None:
        if sharer_facts < 1 or receiver_facts < 0 or sharer_facts + receiver_facts > len(NAMES):
            raise SettingError(
                f"sharer_facts={sharer_facts} and receiver_facts={receiver_facts} must be at least 1 and 0, "
                f"and at most {len(NAMES)} together (a name is used once)."
            )
        if not 0 <= own_questions <= 1 or (own_questions > 0 and receiver_facts == 0):
            raise SettingError(
                f"own_questions={own_questions} must be a fraction in [0, 1], and 0 where receiver_facts is 0."
            )
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        for split, size in self.sizes.items():
            if size < 1:
                raise SettingError(f"{split}_size={size} must be at least 1.")
        self.sharer_facts, self.receiver_facts, self.own_questions = sharer_facts, receiver_facts, own_questions

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        return WorldSplit(self, split, seed)


class WorldSplit(Sequence[Example]):
    """One split of the world, generated on access.

    Args:
        world: The settings.
        split: Which split.
        seed: Seed of the whole world.
    """

    def __init__(self, world: World, split: Split, seed: int) -> None:
        self.world, self.split, self.seed = world, split, seed

    def __len__(self) -> int:
        return self.world.sizes[self.split]

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = random.Random(f"world/{self.seed}/{self.split}/{index}")
        facts = draw_facts(rng, self.world.sharer_facts + self.world.receiver_facts)
        sharer, receiver = facts[: self.world.sharer_facts], facts[self.world.sharer_facts :]
        own = rng.random() < self.world.own_questions
        relation, name, value = rng.choice(receiver if own else sharer)
        return Example(
            id=f"world/{self.seed}/{self.split}/{index}",
            question=f"{relation} {name}",
            answers=(value,),
            sharer=tuple(_passage(fact) for fact in sharer),
            receiver=tuple(_passage(fact) for fact in receiver),
            needs_sharer=not own,
            partition={"mode": "world", "seed": self.seed},
        )


def _passage(fact: tuple[str, str, str]) -> Passage:
    return (fact_text(fact),)
