"""``cache``: the prefills of a config's texts, computed and kept before a fit needs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from rich.progress import track

from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.config import parse, require_limit
from lcf_lightning.data.sources.source import Split
from lcf_lightning.errors import SettingError
from lcf_lightning.link import load_pair
from lcf_lightning.models.store import PrefillStore

COMMAND = COMMANDS["cache"]


@dataclass(frozen=True)
class CacheOptions:
    """What to read.

    Attributes:
        splits: Which splits to read.
        limit: A seeded sample of so many examples of each, from every benchmark in proportion; null for all.
    """

    splits: list[Split] = field(default_factory=lambda: ["train", "validation"])
    limit: int | None = None


def cache(args: list[str]) -> None:
    """Fill the store of ``model.prefills`` with what a fit reads; what is kept already is not computed again.

    Any number of these, and of fits, may run on one folder at once.
    """
    options, config = parse(COMMAND, CacheOptions, args)
    require_limit(options.limit)
    settings = config.prefills
    if settings is None:
        raise SettingError("prefills=null must name a folder: --model.prefills.folder FOLDER.")
    data = config.data()
    data.setup("fit")
    if "test" in options.splits:
        data.setup("test")
    pair = load_pair(data.sharer, data.receiver, config.device)
    sharer = PrefillStore(settings, pair[0])
    receiver = sharer if pair[0] is pair[1] else PrefillStore(settings, pair[1])
    for split in options.splits:
        loader = data.evaluation_loader(split, options.limit, by_length=True)
        for batch in track(loader, split, disable=config.quiet):
            batch = batch.to(config.device)
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
