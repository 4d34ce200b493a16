"""``params``: trainable parameters and adapter size, from the models' configs alone."""

from __future__ import annotations

import json
import sys

import torch

from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.discovery import import_named

COMMAND = COMMANDS["params"]


def params(args: list[str]) -> None:
    """Count parameters; no weight is loaded and no data set read."""
    parser = config_parser(COMMAND)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    values = parser.parse_args(with_bases(args))
    import_named(values["modules"])
    with torch.device("meta"):
        adapter = FitConfig(values).module().adapter
    counts = adapter.parameter_counts()
    megabytes = (counts["total"] + counts["closed_form"]) * 2 / 1e6
    sizes = {**counts, "layers": len(adapter.config.receiver_layers), "megabytes_bf16": megabytes}
    if values["json"]:
        sys.stdout.write(json.dumps(sizes) + "\n")
        return
    lines = [
        f"trainable parameters  {sizes['total']:,}",
        f"  per layer           {sizes['per_layer']:,} × {sizes['layers']}",
        f"  pool                {sizes['pool']:,}",
        f"closed form, fixed    {sizes['closed_form']:,}",
        f"adapter in bf16       {sizes['megabytes_bf16']:.1f} MB",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
