"""``prune``: a smaller adapter that keeps the layers that matter, and what each number of layers is worth."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.subset import keep_layers, open_layers
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.config import FitConfig, parse, require_limit
from lcf_lightning.cli.folders import new_folder, whole_folder
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.layer_importance import Pruning, choose, curve, rank_layers
from lcf_lightning.evaluation.markdown import pruning_page
from lcf_lightning.evaluation.plots import pruning_figure, save
from lcf_lightning.evaluation.ranks import dealt
from lcf_lightning.evaluation.tables import pruning_table
from lcf_lightning.files import write_text
from lcf_lightning.writer import Writer

COMMAND = COMMANDS["prune"]

POINTS = 8  # of the curve, beside no layer and the number kept


@dataclass(frozen=True)
class PruneOptions:
    """What to keep.

    Attributes:
        keep: How many layers to keep, at most.
        adapter: Adapter folder, or ``owner/name`` on the hub; by default the run's own.
        revision: Branch, tag or commit of an adapter on the hub; null for its default branch.
        output: Folder to write; by default ADAPTER_pruned_K.
        limit: A seeded sample of so many examples, from every benchmark in proportion; null for all.
    """

    keep: int | None = None
    adapter: str | None = None
    revision: str | None = None
    output: str | None = None
    limit: int | None = None


def prune(args: list[str]) -> None:
    """Rank layers on the validation split; write the pruned adapter, a table and a plot. Processes as in `evaluate`."""
    options, config = parse(COMMAND, PruneOptions, args)
    require_limit(options.limit)
    keep = options.keep
    if keep is None or keep < 1:
        raise SettingError(f"keep={keep} must be a number of layers of at least 1.")
    folder = config.adapter_folder(options.adapter, options.revision)
    output = new_folder(options.output or f"{options.adapter or folder}_pruned_{keep}")
    data = config.data()
    adapter = config.read_adapter(folder, data)
    layers = open_layers(adapter)
    if keep > len(layers):
        raise SettingError(f"keep={keep} must be at most {len(layers)}, the adapter's layers with an open gate.")
    fabric = config.launch()
    pruning = _ranked(config, options, adapter, data, fabric.device)
    if fabric.is_global_zero:
        _write(pruning, adapter, folder, output, COMMAND.line(args))
        if len(pruning["kept"]) < keep:
            helping = len(pruning["kept"])
            sys.stderr.write(f"only {helping} layers help on the validation split; {keep} were asked for.\n")


def _write(pruning: Pruning, adapter: CacheAdapter, folder: Path, output: Path, command: str) -> None:
    metadata = adapter.config.metadata | {"pruned": {"from": str(folder), "command": command}}
    metadata.pop("scores", None)
    with whole_folder(output) as target:
        keep_layers(adapter, pruning["kept"]).save_pretrained(target, metadata, output)
        write_text(target / "pruning.json", json.dumps({"command": command, **pruning}, indent=2) + "\n")
        page = f"# Pruning\n\n`{command}`\n\n{pruning_page(pruning)}\n"
        write_text(target / "pruning.md", page)
        save(pruning_figure(pruning["curve"], pruning["kept"]), target / "pruning.png")
    Console().print(pruning_table(pruning, str(output)))


def _ranked(
    config: FitConfig, options: PruneOptions, adapter: CacheAdapter, data: PairDataModule, device: torch.device
) -> Pruning:
    """What each layer, and each number of layers, is worth on the validation split."""
    assert options.keep is not None
    data.setup("validate")
    link = config.link(adapter, data, device)
    writer = Writer.of(link)
    batches = list(dealt(data.evaluation_loader("validation", options.limit)))
    importance = rank_layers(link, writer, batches)
    kept, layers = choose(importance, options.keep), open_layers(adapter)
    steps = {round(place * len(layers) / POINTS) for place in range(POINTS + 1)}
    return Pruning(
        closed=[layer for layer in adapter.config.receiver_layers if layer not in layers],
        importance=importance,
        kept=kept,
        curve=curve(link, writer, batches, importance, sorted(steps | {len(kept)}), config.max_new_tokens),
    )
