"""``params``: trainable parameters and adapter size, from the models' configs alone."""

from __future__ import annotations

import json
import sys

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lcf_lightning.cli.run import LCFCLI
from lcf_lightning.module import LCFModule


class ParamsCLI(LCFCLI):
    """Counts parameters; no weight is loaded and no data set read."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")

    def instantiate_classes(self) -> None:
        # Only the model: a config for eight GPUs must count here too, and no data set be read.
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LCFModule, "model")
        with torch.device("meta"):
            adapter = parser.instantiate_classes(Namespace(model=self.config["model"]))["model"].adapter
        counts = adapter.parameter_counts()
        sizes = {**counts, "layers": len(adapter.config.receiver_layers), "megabytes_bf16": counts["total"] * 2 / 1e6}
        if self.config["json"]:
            sys.stdout.write(json.dumps(sizes) + "\n")
            return
        lines = [
            f"trainable parameters  {sizes['total']:,}",
            f"  per layer           {sizes['per_layer']:,} × {sizes['layers']}",
            f"  pool                {sizes['pool']:,}",
            f"adapter in bf16       {sizes['megabytes_bf16']:.1f} MB",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
