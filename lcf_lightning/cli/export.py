"""``export``: from a Lightning checkpoint to an adapter folder, and to the hub."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.checkpoints import read_checkpoint
from lcf_lightning.errors import AdapterFileError, SettingError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(args: list[str]) -> None:
    """Write the adapter of a checkpoint as a folder with its model card, and upload it where asked to."""
    parser = ArgumentParser(prog="lcf_lightning export", description=export.__doc__)
    parser.add_argument("--checkpoint", type=str, required=True, help="A checkpoint that fit wrote.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write.")
    parser.add_argument("--dtype", type=str, default="fp32", help="fp32, bf16 or fp16.")
    parser.add_argument("--push_to_hub", type=str | None, help="Also upload to this owner/name.")
    parser.add_argument("--private", action="store_true", help="Whether a repository made for that is private.")
    config = parser.parse_args(args)
    if config.dtype not in DTYPES:
        raise SettingError(f"dtype={config.dtype!r} must be one of {', '.join(DTYPES)}.")
    output = Path(config.output)
    if output.exists():
        raise SettingError(f"output={config.output!r} exists; name a folder that does not.")
    adapter = read_adapter(Path(config.checkpoint)).to(DTYPES[config.dtype])
    adapter.save_pretrained(output)
    sys.stdout.write(f"{output}: {adapter.parameter_counts()['total']:,} parameters in {config.dtype}\n")
    if config.push_to_hub:
        sys.stdout.write(adapter.push_to_hub(config.push_to_hub, config.private) + "\n")


def read_adapter(file: Path) -> CacheAdapter:
    """The adapter of a Lightning checkpoint, with the test scores of its run where they are this step's.

    Raises:
        AdapterFileError: If there is no such file, or it is no checkpoint of an `LCFModule`.
    """
    if not file.is_file():
        raise AdapterFileError(f"checkpoint={str(file)!r} is not a file; fit writes checkpoints/last.ckpt.")
    checkpoint = read_checkpoint(file)
    config = AdapterConfig.from_dict(checkpoint["adapter_config"])
    state = {name.removeprefix("adapter."): tensor for name, tensor in checkpoint["state_dict"].items()}
    scores = _scores(file.parent.parent / "summary.json", config.metadata.get("steps"))
    adapter = CacheAdapter(replace(config, metadata=config.metadata | ({"scores": scores} if scores else {})))
    own = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    if own != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise AdapterFileError(f"checkpoint={str(file)!r} does not hold exactly the adapter's tensors.")
    adapter.load_state_dict(state)
    return adapter.eval()


def _scores(summary: Path, steps: int | None) -> dict[str, Any]:
    """Exact match and n of every arm on the test split, if the run's summary is of the same step."""
    found = json.loads(summary.read_text()) if summary.is_file() else {}
    return found["arms"] if steps is not None and found.get("steps") == steps else {}
