"""What commands without a Trainer share: the config's data, and one device."""

from __future__ import annotations

import torch
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.errors import SettingError


class DataCLI(LCFCLI):
    """A command that reads the config's data, in one process on one device."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--limit", type=int | None, help="Only so many examples.")

    def instantiate_classes(self) -> None:
        if self.config["limit"] is not None and self.config["limit"] < 1:
            raise SettingError(f"limit={self.config['limit']} must be at least 1, or null for all.")

    def pair_data(self) -> PairDataModule:
        """The data module; no model is loaded and no row read yet."""
        self._require_data()
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        data = parser.instantiate_classes(Namespace(data=self.config["data"]))["data"]
        if not isinstance(data, PairDataModule):
            raise SettingError(
                f"data={type(data).__name__} must be a ContextMismatchDataModule or a SharedContextDataModule."
            )
        return data

    @property
    def device(self) -> torch.device:
        """The first device of the trainer's accelerator."""
        return Fabric(accelerator=self.config["trainer"]["accelerator"], devices=1).device
