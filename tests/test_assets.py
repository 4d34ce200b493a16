"""The embedded pair: different in kind, and able to read and to copy."""

from __future__ import annotations

import pytest
import torch

from lcf_lightning import ModelSpec
from lcf_lightning.assets.make_tiny_models import copying_accuracy, reading_accuracy, word_tokenizer
from lcf_lightning.data.sources.world import NAMES, VALUES, VOCABULARY
from lcf_lightning.models.loading import BUILTIN, load_frozen


def test_the_two_differ_in_everything() -> None:
    sharer, receiver = (load_frozen(ModelSpec(name)) for name in BUILTIN)
    assert type(sharer.model) is not type(receiver.model)
    for field in ("layers", "kv_heads", "head_dim"):
        assert getattr(sharer.geometry, field) != getattr(receiver.geometry, field)


@pytest.mark.parametrize("name", BUILTIN)
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
