"""The embedded pair: different in kind, and able to read and to copy."""

from __future__ import annotations

import pytest
import torch

from lcf_lightning import ModelSpec
from lcf_lightning.assets.make_tiny_expert import questions, recall
from lcf_lightning.assets.make_tiny_models import copying_accuracy, reading_accuracy, word_tokenizer
from lcf_lightning.data.sources.world import NAMES, VALUES, VOCABULARY
from lcf_lightning.models.loading import load_frozen

PAIR = ("tiny-sharer", "tiny-receiver")


def test_the_two_differ_in_everything() -> None:
    sharer, receiver = (load_frozen(ModelSpec(name)) for name in PAIR)
    assert type(sharer.model) is not type(receiver.model)
    for field in ("layers", "kv_heads", "head_dim"):
        assert getattr(sharer.geometry, field) != getattr(receiver.geometry, field)


@torch.no_grad()
def test_the_expert_knows_every_fact_before_it_is_asked() -> None:
    expert, receiver = (load_frozen(ModelSpec(name)).model for name in ("tiny-expert", "tiny-receiver"))
    facts = questions()
    assert recall(expert, facts) == 1.0
    assert recall(receiver, facts) < 0.1
    assert recall(expert, facts[:, [0, 1, 2, 3, 5, 6]]) == 1.0  # at the name already, without the question mark


@pytest.mark.parametrize("name", PAIR)
def test_they_read_and_copy(name: str) -> None:
    model = load_frozen(ModelSpec(name)).model
    with torch.no_grad():
        assert reading_accuracy(model, facts=8, size=512) >= 0.97
        assert copying_accuracy(model, facts=4, size=128) >= 0.97


def test_the_vocabulary_has_no_doubles_and_the_tokenizer_knows_it() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert len(NAMES) == len(VALUES) == 63
    tokenizer = word_tokenizer()
    assert tokenizer("likes ada tea .")["input_ids"] == [
        1,
        *(VOCABULARY.index(w) for w in ("likes", "ada", "tea", ".")),
    ]
    shipped = load_frozen(ModelSpec("tiny-sharer")).tokenizer
    assert shipped.get_vocab() == tokenizer.get_vocab()
