"""What commands on a trained adapter share."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.folder import local_folder
from lcf_lightning.adapter.subset import without_closed_layers
from lcf_lightning.cli.data import DataCLI
from lcf_lightning.data.datamodule import PairDataModule, SharedContextDataModule
from lcf_lightning.errors import SettingError
from lcf_lightning.link import Link, load_pair
from lcf_lightning.models.loading import geometry_of


class AdapterCLI(DataCLI):
    """A command that reads an adapter folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--adapter", type=str | None, help="Adapter folder, or owner/name on the hub; by default the run's own."
        )

    @property
    def adapter_folder(self) -> Path:
        return local_folder(self.config["adapter"] or self.run_folder / "adapter")

    def adapter_and_data(self) -> tuple[CacheAdapter, PairDataModule]:
        """The adapter and the data it belongs to; no model is loaded yet."""
        data = self.pair_data()
        adapter = CacheAdapter.from_pretrained(self.adapter_folder)
        if isinstance(data, SharedContextDataModule) != (adapter.pooler is None):
            kinds = ("no pooler", "SharedContext") if adapter.pooler is None else ("a pooler", "ContextMismatch")
            raise SettingError(
                f"adapter={str(self.adapter_folder)!r} has {kinds[0]} and needs a {kinds[1]}DataModule, "
                f"not a {type(data).__name__}."
            )
        adapter.config.require("sharer", geometry_of(data.sharer))
        adapter.config.require("receiver", geometry_of(data.receiver))
        return adapter, data

    def link(self, adapter: CacheAdapter, data: PairDataModule) -> Link:
        """The pair, loaded on the trainer's device."""
        adapter = without_closed_layers(adapter).to(self.device)
        return Link(*load_pair(data.sharer, data.receiver, self.device), adapter)

    @property
    def max_new_tokens(self) -> int:
        return int(self.config["model"]["max_new_tokens"])
