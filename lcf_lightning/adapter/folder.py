"""An adapter's folder: ``adapter_config.json``, ``adapter_model.safetensors`` and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.hub import CARD_FILE, card, fetch, is_hub_id
from lcf_lightning.errors import AdapterFileError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def local_folder(location: str | Path, revision: str | None = None) -> Path:
    """``location`` as a folder here: itself, or where the files of ``owner/name`` were fetched to from the hub.

    Raises:
        AdapterFileError: If it is no folder here and cannot be fetched.
    """
    if is_hub_id(str(location)):
        return fetch(str(location), revision, (CONFIG_FILE, WEIGHTS_FILE))
    return Path(location)


def write_folder(folder: Path, config: AdapterConfig, tensors: dict[str, Tensor]) -> None:
    """Write all files aside, then rename them, so that none is ever seen half-written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
        (aside / WEIGHTS_FILE).write_bytes(weights)
        (aside / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        parameters = sum(tensor.numel() for tensor in tensors.values())
        (aside / CARD_FILE).write_text(card(config, parameters, len(weights)), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
            os.replace(aside / name, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder.

    Raises:
        AdapterFileError: If a file is missing, or the config is damaged or not understood.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise AdapterFileError(f"adapter={str(folder)!r} has no {name}; both files of an adapter are needed.")
    try:
        return AdapterConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterFileError(f"adapter={str(folder)!r}: {CONFIG_FILE} is damaged: {error}") from error


def read_tensors(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter folder, if they are exactly the expected ones.

    Raises:
        AdapterFileError: If one is missing, too much, or of the wrong shape, or they share no float dtype.
    """
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
            if missing or extra:
                raise AdapterFileError(f"{file}: missing tensors {missing}, unexpected tensors {extra}.")
            for name in sorted(names):
                shape = tuple(stored.get_slice(name).get_shape())
                if shape != tuple(expected[name].shape):
                    raise AdapterFileError(f"{file}: {name} has shape {shape}, expected {tuple(expected[name].shape)}.")
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{file} is damaged or no safetensors file: {error}") from error
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise AdapterFileError(f"{file}: tensors must share one float dtype, found {sorted(map(str, dtypes))}.")
    return tensors
