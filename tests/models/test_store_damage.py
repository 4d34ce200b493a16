"""Kept prefills that are damaged, or are something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lcf_lightning import ModelSpec
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from tests.models.test_store import assert_same, files, prompts


@pytest.fixture
def model(spec: Callable[[str], ModelSpec]) -> FrozenModel:
    return load_frozen(spec("gemma3"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    """Another text's file under this name."""
    other = next(other for other in files(path.parents[1]) if other.stat().st_size != path.stat().st_size)
    path.write_bytes(other.read_bytes())


def pipe(path: Path) -> None:
    """Whoever opened it would wait."""
    path.unlink()
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("damage", [cut, flip, empty, swap, pipe, circle])
def test_a_damaged_file_is_computed_again_and_mended(
    model: FrozenModel, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    expected = prefill(model.model, *prompts())
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    store.read(*prompts())
    damage(files(tmp_path)[0])
    with pytest.warns(UserWarning, match=r"kept prefill .* is damaged \(.*\); it is computed again"):
        assert_same(store.read(*prompts()), expected)
    hits = store.hits
    assert_same(store.read(*prompts()), expected)
    assert store.hits == hits + 3


def test_a_whole_file_of_another_text_of_that_length_is_not_taken(model: FrozenModel, tmp_path: Path) -> None:
    expected = prefill(model.model, *prompts(seed=1))
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    names = {seed: [store._name(ids[mask]) for ids, mask in zip(*prompts(seed), strict=True)] for seed in (0, 1)}
    for seed in (0, 1):
        store.read(*prompts(seed))
    for mine, other in zip(names[1], names[0], strict=True):
        mine.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match=r"kept prefill .* is damaged \(of another text\); it is computed again"):
        assert_same(store.read(*prompts(seed=1)), expected)
