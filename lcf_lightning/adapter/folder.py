"""An adapter's folder: ``lcf_config.json``, ``lcf_adapter.safetensors`` and a model card.

Until release 0.1.0 the two had the names of PEFT's files, which PEFT and transformers take for their own; they are read
as before, and a save in such a folder gives it the new names.

The config names a digest of the weights that belong to it, and the two are replaced as one: new weights are written
beside the old ones under their digest, then the config is renamed, from which moment on the new ones are the adapter's,
then they get their usual name. Whoever is killed in between leaves a whole adapter, the earlier or the new one.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lcf_lightning.adapter.card import CARD_FILE, card
from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.hub import fetch, is_hub_id
from lcf_lightning.digests import is_digest, tensors_digest
from lcf_lightning.errors import AdapterFileError, SettingError
from lcf_lightning.files import write_file, write_text
from lcf_lightning.typed import parse_json, read_json

CONFIG_FILE, WEIGHTS_FILE = "lcf_config.json", "lcf_adapter.safetensors"
OLDER = ("adapter_config.json", "adapter_model.safetensors")
"""The names until release 0.1.0."""
MAX_TABLE = 2**20
"""Bytes of the table of tensors that a weights file begins with, at most; those of this package have some thousand."""
_DIGEST = "weights"  # of the config file, and of no `AdapterConfig`: weights change while they are trained
_DTYPES = ("F64", "F32", "F16", "BF16")


def local_folder(location: str | Path, revision: str | None = None) -> Path:
    """``location`` as a folder here: itself, or where the files of ``owner/name`` were fetched to from the hub.

    Raises:
        AdapterFileError: If it is no folder here and cannot be fetched, or one of which a revision is asked for.
    """
    if is_hub_id(str(location)):
        return fetch(str(location), revision, (CONFIG_FILE, WEIGHTS_FILE, *OLDER))
    if revision is not None:
        raise AdapterFileError(f"revision={revision!r} of adapter {str(location)!r} must be null: that is no hub id.")
    return Path(location)


def file_names(folder: Path) -> tuple[str, str]:
    """What config and weights are called in a folder."""
    older = (folder / OLDER[0]).is_file() and not (folder / CONFIG_FILE).is_file()
    return OLDER if older else (CONFIG_FILE, WEIGHTS_FILE)


def _aside(weights: str, digest: str | None) -> str:
    """Where weights are until they get their usual name."""
    return f".{weights.removesuffix('.safetensors')}-{digest}.safetensors"


def write_folder(folder: Path, config: AdapterConfig, tensors: dict[str, Tensor], location: str | None = None) -> None:
    """Write an adapter, in the place of an earlier one where there is one; no kill leaves a mixture of both.

    The card's code loads ``location``, by default the folder.
    """
    _require_readable(config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights, digest = save(tensors, {"format": "pt"}), tensors_digest(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / _aside(WEIGHTS_FILE, digest)
    write_file(aside, lambda file: _write_through(file, weights))
    write_text(folder / CONFIG_FILE, _text(config, digest))
    os.replace(aside, folder / WEIGHTS_FILE)
    write_text(folder / CARD_FILE, card(config, parameters, len(weights), location or str(folder)))
    for name in (WEIGHTS_FILE, OLDER[1]):
        for unfinished in folder.glob(_aside(name, "*")):  # of a process that was killed
            unfinished.unlink(missing_ok=True)
    if _is_own(folder / OLDER[0]):
        for name in OLDER:
            (folder / name).unlink(missing_ok=True)


def _is_own(config: Path) -> bool:
    """Whether a file is the config of an adapter of this package, and not, say, of PEFT."""
    try:
        return config.is_file() and "format_version" in read_json(config)
    except (SettingError, OSError, TypeError):
        return False


def record_scores(folder: Path, weights: str | None, scores: dict[str, dict[str, Any]], of: str) -> bool:
    """Have a folder's config and card say how each arm did, if it holds an adapter of these weights.

    Of one arm on the same data the figures of more examples stay; figures on other data are put in the place of all.

    Args:
        folder: The adapter's folder.
        weights: The digest of the weights that were tested (`tensors_digest`), as `read_config` gives it.
        scores: By arm ``exact_match`` (or None), ``n``, and maybe ``f1``, ``loss``, and ``low`` and ``high`` of the
            exact match.
        of: The data.

    Returns:
        Whether it was written.
    """
    try:
        config, digest = read_config(folder)
    except AdapterFileError:
        return False
    if digest != weights:
        return False
    before = config.metadata.get("scores", {}) if config.metadata.get("scored_on") == of else {}
    kept = {arm: row for arm, row in before.items() if arm not in scores or scores[arm]["n"] < row["n"]}
    finite = {arm: {name: value for name, value in row.items() if value is None or math.isfinite(value)}
              for arm, row in scores.items()}  # fmt: skip
    config = replace(config, metadata=config.metadata | {"scores": finite | kept, "scored_on": of})
    write_text(folder / file_names(folder)[0], _text(config, digest))
    _write_card(folder)
    return True


def _write_card(folder: Path) -> None:
    """Write the card of an adapter's folder anew."""
    config, digest = read_config(folder)
    file = weights_file(folder, digest)
    with safe_open(file, framework="pt") as stored:
        parameters = sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    write_text(folder / CARD_FILE, card(config, parameters, file.stat().st_size, str(folder)))


def _require_readable(config: AdapterConfig) -> None:
    """Raise a SettingError if `read_config` would refuse a config, whose metadata may hold anything."""
    try:
        table = parse_json(_text(config, "0" * 32).encode())
        AdapterConfig.from_dict({name: value for name, value in table.items() if name != _DIGEST})
    except (TypeError, SettingError, AdapterFileError) as error:
        raise SettingError(f"metadata={config.metadata!r:.80} could not be read again: {error}") from error


def _text(config: AdapterConfig, digest: str | None) -> str:
    return json.dumps(config.to_dict() | ({} if digest is None else {_DIGEST: digest}), indent=2) + "\n"


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
    name = file_names(folder)[0]
    if not folder.is_dir():
        raise AdapterFileError(f"adapter={str(folder)!r} is no folder here; it would be {folder.absolute()}.")
    if not (folder / name).is_file():
        raise AdapterFileError(f"adapter={str(folder)!r} has no {name}; both files of an adapter are needed.")
    try:
        data = read_json(folder / name)
    except (SettingError, OSError) as error:
        raise AdapterFileError(f"adapter={str(folder)!r}: {name} is damaged: {error}") from error
    if isinstance(data, dict) and "peft_type" in data:
        raise AdapterFileError(f"adapter={str(folder)!r} is of PEFT ({name}), and none that this package has written.")
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
    name = file_names(folder)[1]
    aside = folder / _aside(name, digest)
    file = aside if digest is not None and aside.is_file() else folder / name
    if not file.is_file():
        raise AdapterFileError(f"adapter={str(folder)!r} has no {name}; both files of an adapter are needed.")
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
            f"{file} does not hold the weights that {file_names(folder)[0]} belongs to ({_DIGEST}={digest!r:.80}): a "
            "bit has flipped, or the files are of two adapters; copy both from where they came, or save the adapter "
            "again."
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
