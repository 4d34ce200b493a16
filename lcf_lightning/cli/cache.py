"""``cache``: the prefills of a config's texts, computed and kept before a fit needs them."""

from __future__ import annotations

import sys

from lightning.pytorch.cli import LightningArgumentParser
from rich.progress import track

from lcf_lightning.cli.data import DataCLI
from lcf_lightning.data.sources.source import Split
from lcf_lightning.errors import SettingError
from lcf_lightning.link import load_pair
from lcf_lightning.models.store import PrefillSettings, PrefillStore


class CacheCLI(DataCLI):
    """Fills the store of ``model.prefills`` with what a fit reads; what is kept already is not computed again.

    Any number of these, and of fits, may run on one folder at once.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--splits", type=list[Split], default=["train", "validation"], help="Which to read.")

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        given = self.config["model"]["prefills"]
        if given is None:
            raise SettingError("prefills=null must name a folder: --model.prefills.folder FOLDER.")
        settings = PrefillSettings(**given.as_dict())
        data = self.pair_data()
        data.setup("fit")
        if "test" in self.config["splits"]:
            data.setup("test")
        pair = load_pair(data.sharer, data.receiver, self.device)
        sharer = PrefillStore(settings, pair[0])
        receiver = sharer if pair[0] is pair[1] else PrefillStore(settings, pair[1])
        quiet = self.config["trainer"]["enable_progress_bar"] is False
        for split in self.config["splits"]:
            loader = data.evaluation_loader(split, self.config["limit"], by_length=True)
            for batch in track(loader, split, disable=quiet):
                batch = batch.to(self.device)
                sharer.read(batch.sharer.ids, batch.sharer.mask)
                receiver.read(batch.receiver.ids, batch.receiver.mask)
                if not (sharer.writes and receiver.writes):
                    raise SettingError(
                        f"prefills.folder={settings.folder!r} keeps no more: max_gb={settings.max_gb:g} or the disk is "
                        f"used up after {sharer.measure() / 1e9:.3f} GB."
                    )
        stores = {id(store): store for store in (sharer, receiver)}.values()
        kept, computed = sum(store.hits for store in stores), sum(store.misses for store in stores)
        size = sharer.measure() / 1e9
        sys.stdout.write(f"{settings.folder}: {computed} texts computed, {kept} kept before; {size:.3f} GB in all\n")
