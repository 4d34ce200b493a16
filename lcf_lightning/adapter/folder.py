"""An adapter's folder: ``adapter_config.json``, ``adapter_model.safetensors`` and a model card.

The config names a digest of the weights that belong to it, and the two are replaced as one: new weights are written
beside the old ones under their digest, then the config is renamed, from which moment on the new ones are the adapter's,
then they get their usual name. Whoever is killed in between leaves a whole adapter, the earlier or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.hub import CARD_FILE, card, fetch, is_hub_id
from lcf_lightning.digests import is_digest, tensors_digest
from lcf_lightning.errors import AdapterFileError, SettingError
from lcf_lightning.files import write_file, write_text
from lcf_lightning.typed import parse_json, read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_TABLE = 2**20
"""Bytes of the table of tensors that a weights file begins with, at most; those of this package have some thousand."""
_ASIDE = ".adapter_model-{}.safetensors"
_DIGEST = "weights"  # of the config file, and of no `AdapterConfig`: weights change while they are trained
_DTYPES = ("F64", "F32", "F16", "BF16")


def local_folder(location: str | Path, revision: str | None = None) -> Path:
    """``location`` as a folder here: itself, or where the files of ``owner/name`` were fetched to from the hub.

    Raises:
        AdapterFileError: If it is no folder here and cannot be fetched, or one of which a revision is asked for.
    """
    if is_hub_id(str(location)):
        return fetch(str(location), revision, (CONFIG_FILE, WEIGHTS_FILE))
    if revision is not None:
        raise AdapterFileError(f"revision={revision!r} of adapter {str(location)!r} must be null: that is no hub id.")
    return Path(location)


def write_folder(folder: Path, config: AdapterConfig, tensors: dict[str, Tensor]) -> None:
    """Write an adapter, in the place of an earlier one where there is one; no kill leaves a mixture of both."""
    _require_readable(config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights, digest = save(tensors, {"format": "pt"}), tensors_digest(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / _ASIDE.format(digest)
    write_file(aside, lambda file: _write_through(file, weights))
    write_text(folder / CONFIG_FILE, _text(config, digest))
    os.replace(aside, folder / WEIGHTS_FILE)
    write_text(folder / CARD_FILE, card(config, parameters, len(weights)))
    for unfinished in folder.glob(_ASIDE.format("*")):  # of a process that was killed
        unfinished.unlink(missing_ok=True)


def _require_readable(config: AdapterConfig) -> None:
    """Raise a SettingError if `read_config` would refuse a config, whose metadata may hold anything."""
    try:
        table = parse_json(_text(config, "0" * 32).encode())
        AdapterConfig.from_dict({name: value for name, value in table.items() if name != _DIGEST})
    except (TypeError, SettingError, AdapterFileError) as error:
        raise SettingError(f"metadata={config.metadata!r:.80} could not be read again: {error}") from error


def _text(config: AdapterConfig, digest: str) -> str:
    return json.dumps({**config.to_dict(), _DIGEST: digest}, indent=2) + "\n"


def _write_through(file: Path, content: bytes) -> None:
    """Write to the disk itself: a machine that fails must not have the config of weights that it has lost."""
    with file.open("wb") as stored:
        stored.write(content)
        stored.flush()
        os.fsync(stored.fileno())


def read_config(folder: Path) -> tuple[AdapterConfig, str | None]:
    """The config of an adapter folder, and the digest of its weights (none in folders of earlier releases).

    Raises:
        AdapterFileError: If a file is missing, or the config is damaged or not understood.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterFileError(f"adapter={str(folder)!r} has no {CONFIG_FILE}; both files of an adapter are needed.")
    try:
        data = read_json(folder / CONFIG_FILE)
    except (SettingError, OSError) as error:
        raise AdapterFileError(f"adapter={str(folder)!r}: {CONFIG_FILE} is damaged: {error}") from error
    digest = data.pop(_DIGEST, None) if isinstance(data, dict) else None
    if digest is not None and not is_digest(digest):
        raise AdapterFileError(
            f"adapter={str(folder)!r}: {_DIGEST}={digest!r:.80} must be 32 hexadecimal digits, or null."
        )
    return AdapterConfig.from_dict(data), digest


def weights_file(folder: Path, digest: str | None) -> Path:
    """Where the weights of a folder are: under their usual name, unless who wrote them was killed before that.

    Raises:
        AdapterFileError: If they are not there.
    """
    aside = folder / _ASIDE.format(digest)
    file = aside if digest is not None and aside.is_file() else folder / WEIGHTS_FILE
    if not file.is_file():
        raise AdapterFileError(f"adapter={str(folder)!r} has no {WEIGHTS_FILE}; both files of an adapter are needed.")
    return file


def read_tensors(folder: Path, digest: str | None, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter folder, if they are exactly the expected ones and those that the config belongs to.

    Raises:
        AdapterFileError: If one is missing, too much, or of the wrong shape, or they share no float dtype, or have
            another digest. None has been read before the table of all is checked.
    """
    file = weights_file(folder, digest)
    try:
        _require_short_table(file)
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
            if missing or extra:
                raise AdapterFileError(f"{file}: missing tensors {missing!r:.200}, unexpected tensors {extra!r:.200}.")
            slices = {name: stored.get_slice(name) for name in sorted(names)}
            for name, found in slices.items():
                shape = tuple(found.get_shape())
                if shape != tuple(expected[name].shape):
                    raise AdapterFileError(f"{file}: {name} has shape {shape}, expected {tuple(expected[name].shape)}.")
            dtypes = {found.get_dtype() for found in slices.values()}
            if len(dtypes) != 1 or dtypes.isdisjoint(_DTYPES):
                raise AdapterFileError(f"{file}: tensors must share one float dtype, found {sorted(dtypes)}.")
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{file} is damaged or no safetensors file: {error}") from error
    if digest is not None and tensors_digest(tensors) != digest:
        raise AdapterFileError(
            f"{file} does not hold the weights that {CONFIG_FILE} belongs to ({_DIGEST}={digest!r:.80}): a bit has "
            "flipped, or the files are of two adapters; copy both from where they came, or save the adapter again."
        )
    return tensors


def _require_short_table(file: Path) -> None:
    """Raise an AdapterFileError if parsing the table of a file would take far more memory than its tensors do."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
    if length > MAX_TABLE:
        raise AdapterFileError(
            f"{file} is damaged or no safetensors file: its table of tensors is longer than {MAX_TABLE:,} bytes."
        )
