"""``prune``: a smaller adapter that keeps the layers that matter, and what each number of layers is worth."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from lcf_lightning.adapter.subset import keep_layers, open_layers
from lcf_lightning.cli.adapter import AdapterCLI
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.layer_importance import Pruning, choose, curve, rank_layers
from lcf_lightning.evaluation.markdown import pruning_page
from lcf_lightning.evaluation.plots import pruning_figure, save
from lcf_lightning.evaluation.report import pruning_table
from lcf_lightning.files import write_text
from lcf_lightning.writer import Writer

POINTS = 8  # of the curve, beside no layer and the number kept


class PruneCLI(AdapterCLI):
    """Ranks layers on the validation split, writes the pruned adapter, a table and a plot."""

    def __init__(self, args: list[str]) -> None:
        self.command = f"python -m lcf_lightning prune {shlex.join(args)}"
        super().__init__(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--keep", type=int | None, help="How many layers to keep, at most.")
        parser.add_argument("--output", type=str | None, help="Folder to write; by default ADAPTER_pruned_K.")

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        keep = self.config["keep"]
        if keep is None or keep < 1:
            raise SettingError(f"keep={keep} must be a number of layers of at least 1.")
        folder = self.adapter_folder
        output = Path(self.config["output"] or f"{self.config['adapter'] or folder}_pruned_{keep}")
        if output.exists():
            raise SettingError(f"output={str(output)!r} exists; name a folder that does not.")
        adapter, data = self.adapter_and_data()
        opened = open_layers(adapter)
        if keep > len(opened):
            raise SettingError(f"keep={keep} must be at most {len(opened)}, the adapter's layers with an open gate.")
        data.setup("validate")
        link = self.link(adapter, data)
        writer = Writer.of(link)
        batches = list(data.evaluation_loader("validation", self.config["limit"]))
        importance = rank_layers(link, writer, batches)
        kept = choose(importance, keep)
        steps = {round(place * len(opened) / POINTS) for place in range(POINTS + 1)}
        found = Pruning(
            closed=[layer for layer in adapter.config.receiver_layers if layer not in opened],
            importance=importance,
            kept=kept,
            curve=curve(link, writer, batches, importance, sorted(steps | {len(kept)}), self.max_new_tokens),
        )
        metadata = adapter.config.metadata | {"pruned": {"from": str(folder), "command": self.command}}
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".pruning-") as aside:
            written = Path(aside) / output.name
            keep_layers(adapter, kept).save_pretrained(written, {k: v for k, v in metadata.items() if k != "scores"})
            self._write(found, written)
            os.rename(written, output)
        Console().print(pruning_table(found, str(output)))
        if len(kept) < keep:
            sys.stderr.write(f"only {len(kept)} layers help on the validation split; {keep} were asked for.\n")

    def _write(self, found: Pruning, output: Path) -> None:
        write_text(output / "pruning.json", json.dumps({"command": self.command, **found}, indent=2) + "\n")
        write_text(output / "pruning.md", f"# Pruning\n\n`{self.command}`\n\n{pruning_page(found)}\n")
        save(pruning_figure(found["curve"], found["kept"]), output / "pruning.png")
