"""Lightning checkpoints that something has changed."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
import torch
from lcf_lightning.callbacks import AdapterExport, LastCheckpoint

from lcf_lightning import AdapterSettings, ContextMismatchDataModule, LCFModule, ModelSpec
from lcf_lightning.checkpoints import AtomicCheckpointIO, last_checkpoint, newest_checkpoint
from lcf_lightning.cli.export import read_adapter
from lcf_lightning.data.sources import World
from tests.fuzz.structures import bytes_changed, changed
from tests.pairs import small_trainer

PAIR = ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver")
STEPS = 2


def seed(folder: Path) -> bytes:
    """The checkpoint of a fit of two steps."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    _fit(folder / "seed", STEPS, None)
    return last_checkpoint(folder / "seed").read_bytes()


def _fit(folder: Path, steps: int, checkpoint: Path | None) -> None:
    world = World(sharer_facts=2, receiver_facts=1, train_size=16, validation_size=4, test_size=4)
    data = ContextMismatchDataModule(source=world, sharer=PAIR[0], receiver=PAIR[1], batch_size=4, eval_batch_size=4)
    module = LCFModule(*PAIR, AdapterSettings(d=8), warmup_steps=2)
    callbacks: list[pl.Callback] = [LastCheckpoint(1), AdapterExport(str(folder / "adapter"))]
    trainer = small_trainer(
        folder, *callbacks, max_steps=steps, plugins=[AtomicCheckpointIO()], limit_val_batches=1, val_check_interval=1
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)


def damaged(content: bytes, file: Path, random: Random) -> str:
    """Write to ``file`` what something has made of a checkpoint's ``content``; returns what."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = random.choices(("content", "bytes", "another tensor"), (5, 4, 2))[0]
    if kind == "bytes":
        file.write_bytes(bytes_changed(content, random))
        return kind
    checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    if kind == "another tensor":
        state = checkpoint[random.choice(("state_dict", "state_dict", "optimizer_states"))]
        if isinstance(state, list):
            state = random.choice(list(state[0]["state"].values()))
        name = random.choice(list(state))
        state[name] = _another_tensor(state[name], random)
    else:
        seal = checkpoint["seal"]
        checkpoint = changed(checkpoint, random) | {"seal": seal}  # who takes it off, too, is told what Lightning says
    torch.save(checkpoint, file)
    return kind


def _another_tensor(tensor: Any, random: Random) -> Any:
    return random.choice((
        None, 0, [0.5], tensor.double(), tensor.long(), tensor.half(), tensor[..., :-1] if tensor.dim() else tensor + 1,
        tensor.new_zeros(0), tensor.new_zeros(1).expand(2**40), tensor.to("meta"), tensor.fill_(float("nan")),
        tensor.to_sparse() if tensor.dim() else None, tensor.unsqueeze(0), torch.zeros(3).bool(),
    ))  # fmt: skip


def use(folder: Path) -> None:
    """As whoever holds a run folder does: continue the newest checkpoint, and export its adapter."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    read_adapter(newest[0])
    _fit(folder.with_name("continued"), newest[1] + 1, newest[0])
