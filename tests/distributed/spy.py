"""`Spy`: what one rank saw of a run, as JSON for the test to look at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lcf_lightning.data.batch import Batch


class Spy(pl.Callback):
    """Writes ``folder/rank_N.json`` at the end of a fit.

    Counts the elements that the ranks exchange: the broadcast with which DDP begins, the gradients of each training
    batch (through DDP's communication hook), and whatever else is reduced or broadcast in that batch.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._patches: list[Any] = []
        self._gradients = self._traffic = 0
        self.seen: dict[str, Any] = {
            "begin": 0, "gradients": [], "traffic": [], "losses": [], "trained": [], "validated": []
        }  # fmt: skip

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for name in ("all_reduce", "broadcast"):
            self._patches.append(mock.patch.object(dist, name, self._counting(getattr(dist, name))))
        begin = dist._broadcast_coalesced

        def begun(group: Any, tensors: list[Tensor], *rest: Any) -> None:
            self.seen["begin"] += sum(tensor.numel() for tensor in tensors)
            begin(group, tensors, *rest)

        self._patches.append(mock.patch.object(dist, "_broadcast_coalesced", begun))
        for patch in self._patches:
            patch.start()

    def _counting(self, collective: Any) -> Any:
        def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self._traffic += tensor.numel()
            return collective(tensor, *args, **options)

        return counted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wrapped = trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        link = pl_module.link
        self.seen |= {
            "rank": trainer.global_rank,
            "local_rank": trainer.local_rank,
            "node": trainer.node_rank,
            "world_size": trainer.world_size,
            "find_unused_parameters": wrapped.find_unused_parameters,
            "wrapped": _size([*wrapped.parameters(), *wrapped.buffers()]),
            "adapter": _size(pl_module.adapter.parameters()),
            "frozen": _size(link.sharer.model.parameters()) + _size(link.receiver.model.parameters()),
        }

        wrapped.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))  # torch refuses annotations as text

    def _reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        self._gradients += bucket.buffer().numel()
        return allreduce_hook(dist.group.WORLD, bucket)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, number: int) -> None:
        self._gradients = self._traffic = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seen["gradients"].append(self._gradients)
        self.seen["traffic"].append(self._traffic)
        self.seen["losses"].append(float(outputs["loss"]))
        self.seen["trained"].append(batch.ids)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen["validated"] = []  # those of the last validation remain

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.seen["validated"].append(batch.ids)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for patch in self._patches:
            patch.stop()
        digest = hashlib.sha256()
        for tensor in pl_module.adapter.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self.seen["digest"] = digest.hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps(self.seen))


def _size(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def spied(folder: Path) -> list[str]:
    """Arguments of a fit that writes what its ranks saw to ``folder``."""
    return ["--trainer.callbacks+", "tests.distributed.spy.Spy", "--trainer.callbacks.folder", str(folder)]


def reports(folder: Path) -> list[dict[str, Any]]:
    """What the ranks saw, by rank."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank_*.json"))]
