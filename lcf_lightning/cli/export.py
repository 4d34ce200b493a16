"""``export``: from a Lightning checkpoint to an adapter folder, and to the hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.checkpoints import read_checkpoint
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.folders import new_folder, whole_folder
from lcf_lightning.discovery import import_named
from lcf_lightning.errors import AdapterFileError, SettingError
from lcf_lightning.typed import read_json

COMMAND = COMMANDS["export"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        checkpoint: A checkpoint that fit wrote.
        output: Folder to write.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        push_to_hub: Also upload to this ``owner/name``.
        license: Licence of the weights, as the hub calls it; null for what the run's `AdapterExport` says,
            or apache-2.0.
        private: Whether a repository made for that is private.
        modules: Modules to import first, which define parts of the adapter that are not of this package.
    """

    checkpoint: str
    output: str
    dtype: str = "fp32"
    push_to_hub: str | None = None
    license: str | None = None
    private: bool = False
    modules: list[str] | str = field(default_factory=list)


def export(args: list[str]) -> None:
    """Write the adapter of a checkpoint as a folder with its model card, and upload it where asked to."""
    parser = COMMAND.parser()
    parser.add_class_arguments(ExportOptions, skip={"private"})
    parser.add_argument("--private", action="store_true", help="Whether a repository made for that is private.")
    options = ExportOptions(**parser.parse_args(args).as_dict())
    if options.dtype not in DTYPES:
        raise SettingError(f"dtype={options.dtype!r} must be one of {', '.join(DTYPES)}.")
    output = new_folder(options.output)
    import_named(options.modules)
    adapter = read_adapter(Path(options.checkpoint)).to(DTYPES[options.dtype])
    if options.license is not None:
        adapter.config.metadata["license"] = options.license
    with whole_folder(output) as aside:
        adapter.save_pretrained(aside, location=output)
    sys.stdout.write(f"{output}: {adapter.parameter_counts()['total']:,} parameters in {options.dtype}\n")
    if options.push_to_hub:
        sys.stdout.write(adapter.push_to_hub(options.push_to_hub, options.private) + "\n")


def read_adapter(file: Path) -> CacheAdapter:
    """The adapter of a Lightning checkpoint, with its licence, and its run's test scores where they are this step's.

    Raises:
        AdapterFileError: If there is no such file, or it is no checkpoint of an `LCFModule`.
    """
    if not file.is_file():
        raise AdapterFileError(f"checkpoint={str(file)!r} is not a file; fit writes checkpoints/last.ckpt.")
    checkpoint = read_checkpoint(file)
    config = AdapterConfig.from_dict(checkpoint["adapter_config"])
    state = {name.removeprefix("adapter."): tensor for name, tensor in checkpoint["state_dict"].items()}
    scores = scores_of(file.parent.parent / "summary.json", config.metadata.get("steps"))
    metadata = config.metadata | _license(checkpoint) | ({"scores": scores} if scores else {})
    adapter = CacheAdapter.empty(replace(config, metadata=metadata))
    expected = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    if expected != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise AdapterFileError(f"checkpoint={str(file)!r} does not hold exactly the adapter's tensors.")
    adapter.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return adapter.eval()


def _license(checkpoint: dict[str, Any]) -> dict[str, str]:
    """What a run's `AdapterExport`, or a class made of it, says of the licence; nothing in a checkpoint of before."""
    for state in checkpoint.get("callbacks", {}).values():
        match state:
            case {"license": str(license)}:
                return {"license": license}
    return {}


def scores_of(summary: Path, steps: int | None) -> dict[str, Any]:
    """Exact match and n of every arm on the test split, if the run's summary is of the same step.

    Raises:
        AdapterFileError: If the summary is damaged.
    """
    try:
        content = read_json(summary, finite=False) if summary.is_file() else None  # a loss may be NaN
    except (SettingError, OSError) as error:
        raise AdapterFileError(f"{summary} is damaged: {error} Move it away to export without its scores.") from error
    if not isinstance(content, dict) or steps is None or content.get("steps") != steps:
        return {}
    return content.get("arms", {})
