"""Kept prefills that are damaged, or are something else."""

from __future__ import annotations

import errno
import os
import shutil
import time
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


def test_a_folder_in_a_files_place_is_left_and_the_others_are_kept(model: FrozenModel, tmp_path: Path) -> None:
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    store.read(*prompts())
    place, other, _ = files(tmp_path)
    place.unlink()
    other.unlink()
    place.mkdir()
    with pytest.warns(UserWarning, match=r"is damaged \(no regular file\); it is computed again"):
        store.read(*prompts())
    assert store.writes
    assert other.is_file()
    assert place.is_dir()


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


def test_a_subfolder_that_is_a_link_is_left_alone(model: FrozenModel, tmp_path: Path) -> None:
    """To elsewhere or in a circle: what lies there is not read, not written to, not counted and not thrown out."""
    expected, store = prefill(model.model, *prompts()), PrefillStore(PrefillSettings(str(tmp_path / "store")), model)
    store.read(*prompts())
    first, second, _ = {file.parent for file in files(tmp_path / "store")}
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(second)
    second.symlink_to(second)
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(bytes(1000))
    before = {file: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()}
    again = PrefillStore(PrefillSettings(str(tmp_path / "store"), max_gb=1e-9), model)
    with pytest.warns(UserWarning, match=r"is damaged \(in a folder that is a link\); it is computed again"):
        assert_same(again.read(*prompts()), expected)
    assert again.hits == 1
    assert not list(again._files()) or {file.parent for *_, file in again._files()}.isdisjoint({first, second})
    again._opened = time.time() + 10  # all of it is old
    again._room(1)
    assert {file: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()} == before


def test_what_a_killed_process_left_is_counted_and_gives_way(model: FrozenModel, tmp_path: Path) -> None:
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    store.read(*prompts())
    whole = files(tmp_path)[0]
    left = whole.with_name(f".{whole.stem}-0123abcd.safetensors")  # as `write_file` names it
    left.write_bytes(bytes(10_000))
    others = [whole.with_name(name) for name in ("model.safetensors", ".hidden")]
    for other in others:
        other.write_bytes(bytes(10_000))
    for file in (left, *others):
        os.utime(file, (1_000, 1_000))
    again = PrefillStore(PrefillSettings(str(tmp_path), max_gb=(store.size + 5_000) / 1e9), model)
    assert again.size == store.size + 10_000
    assert again._room(1)
    assert not left.exists()
    assert whole.exists()
    assert all(other.exists() for other in others)


def test_a_disk_that_is_full_ends_the_keeping_and_not_the_run(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    with pytest.warns(UserWarning, match="cannot be written .*No space left on device"):
        assert_same(store.read(*prompts()), prefill(model.model, *prompts()))
    assert not store.writes
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
