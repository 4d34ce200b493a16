"""Where a run's checkpoints are, and how they are written: whole or not at all.

torch keeps a checksum of every part of a checkpoint, which is compared before anything is read. Checkpoints of this
package hold a *seal*, too: a digest of their structure, all keys, numbers and the shapes of tensors. What Lightning
restores from one is therefore what a fit has written; it checks nothing itself.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from lcf_lightning.errors import AdapterFileError, SettingError, out_of_memory, reason
from lcf_lightning.files import write_file
from lcf_lightning.typed import from_known

_SEAL = "seal"
_NOT_OURS = "checkpoint='{}' is damaged or not one of this package: {}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint with a seal, beside its place, then renames it. Lightning's own copies it from ``/tmp``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                try:
                    torch.save({**checkpoint, _SEAL: _digest(checkpoint)}, file)
                    file.flush()
                    os.fsync(file.fileno())  # else a machine that fails may have renamed a file it has not written
                except RuntimeError as error:  # torch's, in whose context is why the disk refused
                    refused = _oserror_behind(error)
                    raise (refused or error) from None

        write_file(Path(path), write)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """As Lightning does it; an AdapterFileError where a part of the file is longer or shorter than its tensor."""
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **options)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise AdapterFileError(_NOT_OURS.format(path, reason(error))) from error
        return checkpoint


def _oserror_behind(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def last_checkpoint(run_folder: Path) -> Path:
    """The checkpoint that a run keeps, whether it is there or not."""
    return run_folder / "checkpoints" / "last.ckpt"


def newest_checkpoint(run_folder: Path) -> tuple[Path, int] | None:
    """The checkpoint with most steps, of the run's own and those that Lightning's SLURM requeue leaves, and its steps.

    Each is read once.

    Raises:
        AdapterFileError: If one is damaged.
    """
    files = [file for file in (last_checkpoint(run_folder), *run_folder.glob("hpc_ckpt_*.ckpt")) if file.is_file()]
    return max(((file, steps_of(file)) for file in files), key=lambda each: each[1], default=None)


def steps_of(file: Path) -> int:
    """The optimizer steps behind a checkpoint.

    Raises:
        AdapterFileError: If it is damaged or none of this package's.
    """
    return int(read_checkpoint(file)["global_step"])


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A Lightning checkpoint, its tensors memory-mapped: plain values and tensors, no code.

    Raises:
        AdapterFileError: If it is damaged, or not one that an `LCFModule` wrote.
    """
    with file.open("rb") as stored:  # what the system refuses is no damage
        try:
            parts = _parts(stored)
            checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            _require_whole(checkpoint, parts)
            _require_content(checkpoint)
        except UnpicklingError as error:  # torch would advise how to read it all the same
            why = "it is no plain table of values and tensors."
            raise AdapterFileError(_NOT_OURS.format(file, why)) from error
        except Exception as error:  # of a foreign pickle: its reader stumbles in any way
            if out_of_memory(error):
                raise
            raise AdapterFileError(_NOT_OURS.format(file, reason(error))) from error
    return checkpoint


def _parts(file: IO[bytes]) -> list[tuple[int, int]]:
    """Where each part stands that holds a tensor's numbers, and its bytes; after all checksums are compared.

    Raises:
        BadZipFile: If a checksum is another, or a part is compressed, which torch would take for numbers.
    """
    with ZipFile(file) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise BadZipFile(f"{damaged} does not have its checksum.")
        infos = archive.infolist()
    if any(info.compress_type != ZIP_STORED for info in infos):
        raise BadZipFile("a part of it is compressed.")
    parts = []
    for info in (info for info in infos if "/data/" in info.filename and info.file_size):
        file.seek(info.header_offset + 26)  # the local header says how long name and padding are
        parts.append((info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))), info.file_size))
    return parts


def _require_whole(checkpoint: object, parts: list[tuple[int, int]]) -> None:
    """Raise unless each tensor has its part, and that whole: a mapped one would go on into what follows in the file."""
    storages = (tensor.untyped_storage() for tensor in _tensors(checkpoint))
    mapped = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
    if _from_first(mapped.items()) != _from_first(parts):
        raise BadZipFile("a part of it is longer or shorter than its tensor.")


def _from_first(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places and lengths, the places counted from the first one."""
    ordered = sorted(places)
    return [(place - ordered[0][0], length) for place, length in ordered]


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and not value.is_meta:
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from chain.from_iterable(map(_tensors, value))


@dataclass(frozen=True)
class _Content:
    """What of a checkpoint this package reads, and then what Lightning does; callbacks may add more."""

    adapter_config: dict[str, Any]
    global_step: int
    state_dict: dict[str, Any]
    seal: str | None = None
    epoch: int = 0
    loops: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    lr_schedulers: list[dict[str, Any]] = field(default_factory=list)


def _require_content(checkpoint: Any) -> None:
    """Raise a SettingError unless a checkpoint is of an `LCFModule` and, if it has a seal, has not been changed."""
    if not isinstance(checkpoint, dict):
        raise SettingError("it holds no table.")
    content = from_known(_Content, checkpoint, "checkpoint")
    if content.global_step < 0:
        raise SettingError(f"global_step={content.global_step} must be at least 0.")
    foreign = [name for name, tensor in content.state_dict.items() if not _plain(tensor)]
    if foreign:
        raise SettingError(f"state_dict holds {foreign!r:.80}, which are no tensors of floating point.")
    if content.seal is not None and content.seal != _digest(checkpoint):
        raise SettingError("it was changed after it had been written; go on from one that was not.")
    broken = [name for name, tensor in content.state_dict.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise SettingError(f"state_dict holds {broken!r:.80}, which are not finite.")


def _plain(tensor: object) -> bool:
    """Whether it is a tensor of floating point that holds each of its numbers itself: one that repeats a few can be of
    any size."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or str(tensor.layout) != "torch.strided":
        return False
    return tensor.is_meta or tensor.nbytes <= tensor.untyped_storage().nbytes()


def _digest(checkpoint: Mapping[str, Any]) -> str:
    """128-bit BLAKE2b of all but the numbers in its tensors, of which torch keeps checksums."""
    sealed = {name: value for name, value in checkpoint.items() if name != _SEAL}
    return hashlib.blake2b(_structure(sealed).encode(), digest_size=16).hexdigest()


def _structure(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.layout} {tuple(value.shape)} {value.is_meta}"
    if isinstance(value, Mapping):
        inside = sorted(f"{key!r}: {_structure(inner)}" for key, inner in value.items())
        return "".join(("{", ", ".join(inside), "}"))
    if isinstance(value, list | tuple):
        return "".join(("[", ", ".join(map(_structure, value)), "]"))
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return "".join(("{", ", ".join(sorted(map(_structure, value))), "}"))
    plain = value is None or isinstance(value, str | int | float | bytes | torch.dtype | torch.device)
    return f"{type(value).__name__} {value!r}" if plain else type(value).__name__  # others' may name an address
