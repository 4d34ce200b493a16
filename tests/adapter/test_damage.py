"""An adapter folder that is not what its writer left: refused by a sentence, before anything is built."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.folder import CONFIG_FILE, MAX_TABLE, WEIGHTS_FILE, read_config, weights_file
from lcf_lightning.errors import AdapterFileError, SettingError

Build = Callable[..., CacheAdapter]


@pytest.fixture
def saved(adapter: Build, tmp_path: Path) -> Path:
    adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def changed(folder: Path, path: str, value: Any) -> None:
    """Give a field of the config, ``a.b.c``, another value."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[name] = value
    (folder / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("receiver.geometry.layers", 10**7, "layers=10000000 must be a whole number between 1 and 65536"),
        ("sharer.geometry.kv_heads", True, "geometry.kv_heads=True must be a whole number"),
        ("settings.d", 2**20, "d=1048576 must be even and between 2 and 65536"),
        ("settings.d", 16.0, "settings.d=16.0 must be a whole number"),
        ("settings.gate_init", "1", "settings.gate_init='1' must be a finite number"),
        ("settings.layers", [0, "1"], r"settings.layers\[1\]='1' must be a whole number"),
        ("settings.layers", list(range(10**5)), r"layers=\[0, 1, 2, .* must be ascending, distinct"),
        ("settings.zero_init", 0, "settings.zero_init=0 must be true or false"),
        ("settings.fuser", {"class_path": {}}, "a part must be a name, or class_path and init_args"),
        ("sharer", "a/sharer", "adapter.sharer='a/sharer' must be a table"),
        ("sharer.path", True, "sharer.path=True must be text"),
        ("sharer.path", "x" * 10**5, "path='xxx.*, or its revision, must have at most 1024 characters"),
        ("settings.layer_map", "x" * 10**5, "layer_map='xxx"),
        ("sharer.dtype", ["float32"], "sharer.dtype=.* must be text"),
        ("metadata", [], r"adapter.metadata=\[\] must be a table"),
        ("metadata.prompts", "{passages}", "metadata.prompts='{passages}' must be a table"),
        ("metadata.scores", {"message": {"exact_match": "1", "n": 2}}, "message.exact_match='1' must be a finite"),
        ("metadata.scores", {"message": {}}, "metadata.scores.message has no exact_match, n"),
        ("metadata.note", float("nan"), "NaN is no number"),
        ("metadata.note", 10**30, r"a whole number beyond 2\^53"),
        ("metadata.note", "\0", r"'\\x00' holds a character that is none"),
        ("metadata.note", "\ud800", "holds a character that is none"),
        ("metadata.note", "x" * 2**20, "longer than 1,048,576 bytes"),
        ("weights", "../../x", "weights='../../x' must be 32 hexadecimal digits, or null"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_or_size_is_named(saved: Path, path: str, value: Any, message: str) -> None:
    changed(saved, path, value)
    with pytest.raises(AdapterFileError, match=message) as refused:
        CacheAdapter.from_pretrained(saved)
    assert len(str(refused.value)) < 1100


@pytest.mark.parametrize("levels", [40, 900, 100_000])
def test_a_config_that_is_nested_too_deep_is_refused(saved: Path, levels: int) -> None:
    text, nested = (saved / CONFIG_FILE).read_text(), "[" * levels + "]" * levels
    (saved / CONFIG_FILE).write_text(text.replace('"metadata": {', f'"metadata": {{"note": {nested}'))
    with pytest.raises(AdapterFileError, match="lcf_config.json is damaged: it is"):
        CacheAdapter.from_pretrained(saved)


def test_what_no_tensor_can_be_is_refused(saved: Path) -> None:
    for side in ("sharer", "receiver"):
        changed(saved, f"{side}.geometry", {"layers": 2**16, "kv_heads": 2**16, "head_dim": 2**16})
    changed(saved, "settings.pooler", "carry")
    with pytest.raises(AdapterFileError, match="no adapter can be as large as its config says"):
        CacheAdapter.from_pretrained(saved)


def test_a_table_of_tensors_that_is_too_long_is_not_parsed(saved: Path) -> None:
    (saved / WEIGHTS_FILE).write_bytes((MAX_TABLE + 1).to_bytes(8, "little") + b" " * (MAX_TABLE + 1))
    with pytest.raises(AdapterFileError, match="its table of tensors is longer than 1,048,576 bytes"):
        CacheAdapter.from_pretrained(saved)


def test_a_flipped_bit_is_refused_wherever_it_is(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in (start, start + 1001, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (saved / WEIGHTS_FILE).write_bytes(flipped)
        with pytest.raises(AdapterFileError, match=r"does not hold the weights that lcf_config.json belongs to"):
            CacheAdapter.from_pretrained(saved)


def test_weights_of_another_adapter_are_refused_and_folders_of_before_have_no_digest(
    saved: Path, adapter: Build
) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors["gates.logits"] = torch.full_like(tensors["gates.logits"], 7.0)
    save_file(tensors, saved / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match="the files are of two adapters; copy both from where they came"):
        CacheAdapter.from_pretrained(saved)
    changed(saved, "weights", None)
    assert CacheAdapter.from_pretrained(saved).gates.logits.unique().tolist() == [7.0]


def test_a_kill_at_any_rename_leaves_one_whole_adapter(
    adapter: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over none, over one of before, which names no digest, and over one of now."""
    moments, replace, folder = [], os.replace, tmp_path / "adapter"

    def watched(source: Path, target: Path) -> None:
        for act in (lambda: None, lambda: replace(source, target)):
            act()
            moments.append(tmp_path / f"moment_{len(moments)}")
            shutil.copytree(folder, moments[-1])

    def save(step: int) -> None:
        module = adapter()
        with torch.no_grad():
            module.gates.logits.fill_(float(step))
        module.save_pretrained(folder, {"steps": step})

    monkeypatch.setattr(os, "replace", watched)
    save(1)
    changed(folder, "weights", None)
    save(2)
    save(3)
    found = []
    for moment in moments[4:]:  # before, there is no adapter yet
        module = CacheAdapter.from_pretrained(moment)
        assert module.gates.logits.unique().tolist() == [module.config.metadata["steps"]]
        assert weights_file(moment, read_config(moment)[1]).is_file()
        found.append(module.config.metadata["steps"])
    assert set(found) == {1, 2, 3}
    assert found == sorted(found)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", WEIGHTS_FILE, CONFIG_FILE]


def test_what_a_killed_save_has_left_is_put_away_by_the_next(saved: Path, adapter: Build) -> None:
    """And read until then, if the config was there already."""
    digest = read_config(saved)[1]
    aside = saved / f".lcf_adapter-{digest}.safetensors"
    (saved / WEIGHTS_FILE).rename(aside)
    assert CacheAdapter.from_pretrained(saved).gates.logits.unique().tolist() == [1.0]
    (saved / ".lcf_adapter-0.safetensors").touch()
    adapter(gate_init=2.0).save_pretrained(saved)
    assert CacheAdapter.from_pretrained(saved).gates.logits.unique().tolist() == [2.0]
    assert len(list(saved.iterdir())) == 3


@pytest.mark.parametrize("metadata", [{"source": ["a"]}, {"note": float("nan")}, {"note": "x" * 2**20}, {"note": b""}])
def test_what_could_not_be_read_again_is_not_written(adapter: Build, tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="could not be read again"):
        adapter().save_pretrained(tmp_path / "adapter", metadata)
    assert not (tmp_path / "adapter").exists()
