"""A fit's run folder: its config, and the earlier run that a new one moves aside."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.files import FolderLock, write_text
from lcf_lightning.hyperparameters import hyperparameters

_OTHERS = re.compile("trainer/(callbacks|logger|plugins|profiler)|data/init_args/(sharer|receiver)")  # parts, and links


class RunConfig(SaveConfigCallback):
    """Saves the resolved config of a fit in the run folder, whatever the logger: one that begins, or begins again.

    The settings of Trainer and data go to every logger too, beside the module's own hyperparameters.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass  # a checkpoint may yet be refused

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            config = self.config.clone()
            for of_this_fit in ("ckpt_path", "weights_only"):  # to run again is not to continue; nor is to evaluate
                config.pop(of_this_fit, None)
            text = self.parser.dump(config, skip_none=False, skip_check=True)
            write_text(Path(trainer.default_root_dir) / "config.yaml", text)
            given = hyperparameters({"trainer": config["trainer"].as_dict(), "data": config["data"].as_dict()})
            settings = {name: value for name, value in given.items() if value is not None and not _OTHERS.match(name)}
            for logger in trainer.loggers:
                logger.log_hyperparams(settings)


class TestReader(Callback):
    """Has a fit read what it is tested on at its end before a weight is loaded: no file may be missing then."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == TrainerFn.FITTING and isinstance(data, PairDataModule):
            data.setup("test")
            data.evaluation_loader("test")


class EarlierRun:
    """The run that a folder held before this one: moved aside, and put back if this one does not come to a step.

    Args:
        lock: The run folder, which this process alone has.
    """

    def __init__(self, lock: FolderLock) -> None:
        self._lock = lock
        folder = lock.folder
        self._aside = lock.move_aside(("config.yaml", "metrics.csv", "adapter", "checkpoints"))
        if self._aside is not None:
            if (self._aside / "config.yaml").is_file():  # which other processes of this fit may have yet to read
                write_text(folder / "config.yaml", (self._aside / "config.yaml").read_text())
            rank_zero_info(
                f"{folder} held an earlier run; moved to {self._aside}. To continue a run, give --ckpt_path last."
            )

    def put_back(self) -> None:
        """Undo it; what a start has written that has trained nothing goes."""
        if self._aside is not None:
            with suppress(OSError):  # then it stays where it was said to be
                self._lock.put_back(self._aside)
                rank_zero_info(f"Nothing was trained; the earlier run is in {self._lock.folder} again.")
