"""Adapter folders that something has changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from lcf_lightning import AdapterConfig, AdapterSettings, CacheAdapter, Channel
from lcf_lightning.adapter.config import ModelIdentity
from lcf_lightning.adapter.folder import file_names
from lcf_lightning.models.geometry import Geometry
from tests.fuzz.structures import bytes_changed, json_changed, safetensors_changed

KEPT = Path(__file__).parents[1] / "kept_0_1_0"
SHARER = ModelIdentity("tiny-sharer", None, Geometry(3, 2, 32))
RECEIVER = ModelIdentity("tiny-receiver", None, Geometry(4, 4, 16))
METADATA = {
    "steps": 4, "seed": 42, "source": "World", "val/loss": 1.5, "init_from": "runs/a/adapter",
    "prompts": {"context": "{passages} ", "question": "question {question} ?", "spans": "window:3"},
    "scores": {"message": {"exact_match": 0.5, "n": 8}, "mismatched": {"exact_match": None, "n": 8}},
}  # fmt: skip


def seeds(folder: Path) -> list[Path]:
    """Adapter folders of release 0.1.0, and of this one."""
    kept = [KEPT / name for name in ("span", "prefix", "shared", "c2c")]
    torch.manual_seed(0)
    for name, settings in {
        "span": AdapterSettings(d=8, layers=(0, 2)),
        "carry": AdapterSettings(d=8, pooler={"class_path": "carry", "init_args": {"sources": 2}}),
        "c2c": AdapterSettings(d=8, fuser="c2c", pooler=None),
    }.items():
        CacheAdapter(AdapterConfig(SHARER, RECEIVER, settings)).save_pretrained(folder / name, METADATA)
        kept.append(folder / name)
    return kept


def damaged(seed: Path, others: list[Path], folder: Path, random: Random) -> str:
    """Write to ``folder`` what something has made of the adapter ``seed``; returns what."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config, weights = (folder / name for name in file_names(seed))
    for file in (config, weights):
        shutil.copyfile(seed / file.name, file)
    kind = random.choices(("config", "weights", "both", "another's", "no file"), (10, 6, 3, 1, 1))[0]
    if kind in ("config", "both"):
        config.write_bytes(json_changed(config.read_bytes(), random))
    if kind in ("weights", "both"):
        weights.write_bytes(safetensors_changed(weights.read_bytes(), random))
    if kind == "another's":
        other = random.choice(others)
        name, file = random.choice(list(zip(file_names(other), (config, weights), strict=True)))
        shutil.copyfile(other / name, file)
    if kind == "no file":
        _without(random.choice((config, weights)), random)
    return kind


def _without(file: Path, random: Random) -> None:
    """Nothing there, or nothing that is a file, or a file of something else."""
    content = file.read_bytes()
    file.unlink()
    turns: list[Callable[[], object]] = [
        lambda: None, file.mkdir, file.touch, lambda: file.symlink_to(file.name), lambda: file.symlink_to("/dev/null"),
        lambda: file.write_bytes(bytes_changed(content, random)), lambda: file.write_bytes(random.randbytes(1000)),
        lambda: file.write_bytes(b"\xff\xfe" + content),
    ]  # fmt: skip
    random.choice(turns)()


def use(folder: Path, scratch: Path) -> None:
    """As whoever holds an adapter does: load it, know it, let it speak, save it."""
    channel = Channel.from_pretrained(folder)
    channel.origin  # noqa: B018 - reads every field that messages carry
    question = "likes ada" if channel.takes_question else None
    message = channel.send(["likes ada tea .", "owns ben lamp ."], question)
    channel.receive(message, "likes ada", ["finds eva bell ."], max_new_tokens=1)
    channel.adapter.save_pretrained(scratch)
