"""A checkpoint that is not what a fit has written: refused by a sentence, before any weight is loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
import torch
from lcf_lightning.callbacks import LastCheckpoint

from lcf_lightning import ModelSpec
from lcf_lightning.checkpoints import AtomicCheckpointIO, _digest, last_checkpoint, read_checkpoint, steps_of
from lcf_lightning.cli.export import read_adapter
from lcf_lightning.errors import AdapterFileError
from tests.pairs import small_data, small_module, small_trainer


@pytest.fixture(scope="module")
def content(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a fit of two steps."""
    folder = tmp_path_factory.mktemp("run")
    pair = [ModelSpec(str(model_folders[name])) for name in ("llama", "qwen3")]
    trainer = small_trainer(folder, LastCheckpoint(1), max_steps=2, plugins=[AtomicCheckpointIO()])
    trainer.fit(small_module(*pair), datamodule=small_data(*pair))
    return last_checkpoint(folder).read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "last.ckpt").write_bytes(content)
    return tmp_path / "last.ckpt"


def test_a_flipped_bit_of_any_part_is_refused(file: Path, content: bytes) -> None:
    with ZipFile(file) as archive:
        parts = archive.infolist()
    assert len(parts) > 20
    for part in parts:
        name, extra = struct.unpack_from("<HH", content, part.header_offset + 26)
        flipped = bytearray(content)
        flipped[part.header_offset + 30 + name + extra + part.file_size // 2] ^= 16
        file.write_bytes(flipped)
        with pytest.raises(AdapterFileError, match=r"last.ckpt' is damaged or not one of this package"):
            steps_of(file)


def cut(parts: dict[str, bytes], numbers: list[str]) -> None:
    parts[numbers[0]] = parts[numbers[0]][:-4]


def lengthen(parts: dict[str, bytes], numbers: list[str]) -> None:
    parts[numbers[0]] += bytes(4)


def exchange(parts: dict[str, bytes], numbers: list[str]) -> None:
    parts[numbers[0]], parts[numbers[-1]] = parts[numbers[-1]], parts[numbers[0]]


def rewritten(file: Path, compressed: str = "", change: Callable[..., None] = lambda *_: None) -> None:
    """By somebody who makes its checksums again."""
    with ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    change(parts, sorted((name for name in parts if "/data/" in name), key=lambda name: -len(parts[name])))
    with ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(ZipInfo(name), content, ZIP_DEFLATED if name.endswith(compressed or "\0") else ZIP_STORED)


@pytest.mark.parametrize("change", [cut, lengthen, exchange])
def test_a_part_of_another_length_is_refused(file: Path, change: Callable[..., None]) -> None:
    """The seal is of what the tensors should be, and not of what stands in their places."""
    rewritten(file)
    assert steps_of(file) == 2
    rewritten(file, change=change)
    with pytest.raises(AdapterFileError, match=r"last.ckpt' is damaged or not one of this package: record size"):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=True)
    with pytest.raises(AdapterFileError, match="a part of it is longer or shorter than its tensor"):
        read_adapter(file)


@pytest.mark.parametrize("name", ["/data/4", "/data.pkl"])
def test_a_part_that_is_compressed_is_refused(file: Path, name: str) -> None:
    rewritten(file, compressed=name)
    with pytest.raises(AdapterFileError, match="a part of it is compressed"):
        read_adapter(file)


def test_too_little_memory_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            read(file)


def test_what_is_not_finite_is_not_gone_on_from(file: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    name, tensor = next(iter(checkpoint["state_dict"].items()))
    tensor.view(-1)[0] = torch.nan
    torch.save(checkpoint, file)
    with pytest.raises(AdapterFileError, match=re.escape(f"state_dict holds ['{name}'], which are not finite")):
        read_adapter(file)


def loops_further(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] += 10**6


def first_moment_of_another_shape(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["optimizer_states"][0]["state"][0]
    state["exp_avg"] = state["exp_avg"][:1]


def no_callbacks(checkpoint: dict[str, Any]) -> None:
    checkpoint["callbacks"] = {}


@pytest.mark.parametrize("change", [loops_further, first_moment_of_another_shape, no_callbacks])
def test_what_was_changed_after_it_was_written_is_refused(file: Path, change: Callable[[Any], None]) -> None:
    """Lightning would go on from it, or fail within itself."""
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, file)
    with pytest.raises(AdapterFileError, match="it was changed after it had been written"):
        read_checkpoint(file)
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)  # by whoever knows what they do
    assert steps_of(file) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_step": "2"}, "checkpoint.global_step='2' must be a whole number"),
        ({"global_step": -1}, "global_step=-1 must be at least 0"),
        ({"state_dict": [1]}, r"checkpoint.state_dict=\[1\] must be a table"),
        ({"state_dict": {"adapter.gates.logits": 3}}, r"state_dict holds \['adapter.gates.logits'\], which"),
        ({"loops": {"fit_loop": {"state_dict": "x"}}}, "loops.fit_loop.state_dict='x' must be a table"),
        ({"optimizer_states": [0]}, r"optimizer_states\[0\]=0 must be a table"),
        ({"adapter_config": None}, "checkpoint.adapter_config=None must be a table"),
    ],
)  # fmt: skip
def test_a_checkpoint_without_a_seal_is_read_as_before_and_its_fields_are_checked(
    file: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["seal"]
    torch.save(checkpoint, file)
    assert steps_of(file) == 2
    assert read_adapter(file).config.metadata["steps"] == 2
    torch.save(checkpoint | changes, file)
    with pytest.raises(AdapterFileError, match=message):
        steps_of(file)


def test_a_pickle_that_would_run_code_or_is_none_is_refused(file: Path) -> None:
    for content in (print, 3, {"state_dict": {}}, [torch.zeros(2)]):
        torch.save(content, file)
        with pytest.raises(AdapterFileError, match="is damaged or not one of this package") as refused:
            read_checkpoint(file)
        assert "This file can still be loaded" not in str(refused.value), "which is torch's advice"


def test_what_has_no_order_is_the_same_in_every_process() -> None:
    several = [_digest({"names": set(order), "object": object()}) for order in (["a", "b", "c"], ["c", "b", "a"])]
    assert several[0] == several[1] != _digest({"names": {"a", "b"}, "object": object()})
