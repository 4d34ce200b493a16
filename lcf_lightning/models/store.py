"""`PrefillStore`: prefills of a frozen model, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lcf_lightning.errors import SettingError, reason
from lcf_lightning.files import write_file
from lcf_lightning.models.cache import KVCache, check_prompts, prefill
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.spec import DTYPES

_OWN = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}-[0-9a-f]{8}")  # names of kept prefills, whole and unfinished
_IGNORED = {"_name_or_path", "transformers_version"}  # of a model's config: no cache depends on them


@dataclass(frozen=True)
class PrefillSettings:
    """Where prefills are kept.

    Attributes:
        folder: The store; several runs, ranks and models may share it.
        dtype: ``float32``, ``bfloat16`` or ``float16``; null for the model's own. Half of it is half the bytes.
        max_gb: Limit of the folder's size in 10⁹ bytes; what was not used for longest gives way.
    """

    folder: str
    dtype: str | None = None
    max_gb: float = 50.0

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise SettingError(f"dtype={self.dtype!r} of prefills must be one of {', '.join(DTYPES)}, or null.")
        if not 0 < self.max_gb < math.inf:
            raise SettingError(f"max_gb={self.max_gb} of prefills must be above 0, and finite.")


class PrefillStore:
    """Keeps what a frozen model remembers of a text: same weights, dtype and tokens give the same cache.

    One safetensors file a text, ``folder/ab/ab….safetensors``, holds keys and values ``[layers, kv_heads, tokens,
    head_dim]`` without padding. Its name, which also stands in it, is a digest of the model's fingerprint, the stored
    dtype and the token ids.
    A file is written aside and renamed, and nothing is locked, so any number of processes may share a folder; two that
    compute the same text write the same file. A file is checked when it is read: one that is damaged is computed
    again, with a warning.

    Args:
        settings: Folder, dtype and limit.
        model: Whose prefills these are.

    Attributes:
        size: Bytes in the folder when last looked at, and what this store has written since.
        writes: Whether it still keeps what it computes.
        hits: Texts found.
        misses: Texts computed.
    """

    def __init__(self, settings: PrefillSettings, model: FrozenModel) -> None:
        self.model, self.folder = model, Path(settings.folder)
        self.dtype = DTYPES[settings.dtype or model.spec.dtype]
        self.limit = int(settings.max_gb * 1e9)
        self.hits = self.misses = 0
        self._fingerprint = f"{fingerprint(model)}/{self.dtype}"
        self._opened = time.time()
        self.size, self._unseen = self.measure(), 0  # bytes written since the folder was looked at
        self.writes = True  # until the disk refuses, or all of the limit is in use

    def read(self, ids: Tensor, mask: Tensor) -> KVCache:
        """A batch's cache: kept texts from disk, all others by one prefill, which is kept.

        Args:
            ids: ``[batch, tokens]``, int64, padded on the left, on the model's device.
            mask: ``[batch, tokens]``, bool, False on padding.

        Returns:
            What `prefill` gives, to the rounding of the stored dtype and of other batches; padding is zero.

        Raises:
            GeometryError: If the shapes differ or a row is padded on the right.
        """
        check_prompts(ids, mask)
        lengths = mask.sum(1).tolist()
        names = [self._name(row[-length:]) for row, length in zip(ids.cpu(), lengths, strict=True)]
        kept = [self._load(name, length) for name, length in zip(names, lengths, strict=True)]
        missing = [row for row, found in enumerate(kept) if found is None]
        self.hits, self.misses = self.hits + len(kept) - len(missing), self.misses + len(missing)
        if missing:
            width = max(lengths[row] for row in missing)
            cache = prefill(self.model.model, ids[missing, -width:], mask[missing, -width:])
            sides = [torch.stack(side, 1).to(self.dtype) for side in (cache.keys, cache.values)]  # [batch, layers, …]
            for place, row in enumerate(missing):
                keys, values = (side[place, :, :, width - lengths[row] :] for side in sides)
                self._keep(names[row], keys, values)
                kept[row] = keys, values  # as rounded as what a later epoch reads
        return self._batch(kept, mask)

    def _batch(self, kept: Sequence[tuple[Tensor, Tensor] | None], mask: Tensor) -> KVCache:
        """Texts of different lengths, padded on the left with zeros, on the model's device and in its dtype."""
        geometry, (batch, width) = self.model.geometry, mask.shape
        shape = (geometry.layers, batch, geometry.kv_heads, width, geometry.head_dim)
        sides = []
        for side in (0, 1):
            stacked = torch.zeros(shape, dtype=DTYPES[self.model.spec.dtype])
            for row, pair in enumerate(kept):
                assert pair is not None
                stacked[:, row, :, width - pair[side].shape[2] :] = pair[side].cpu()
            sides.append(stacked.to(mask.device, non_blocking=True))
        return KVCache(tuple(sides[0]), tuple(sides[1]), mask)

    def _name(self, ids: Tensor) -> Path:
        digest = hashlib.sha256(self._fingerprint.encode() + ids.numpy().tobytes()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _load(self, file: Path, length: int) -> tuple[Tensor, Tensor] | None:
        """A text's keys and values, memory-mapped; null where they are not kept, or not whole."""
        try:
            if file.parent.is_symlink():  # what lies there is somebody else's
                return self._damaged(file, "in a folder that is a link")
            if not stat.S_ISREG(file.stat().st_mode):  # to open a pipe would wait for a writer
                return self._damaged(file, "no regular file")
            with safe_open(file, framework="pt") as stored:
                keys, values = stored.get_tensor("keys"), stored.get_tensor("values")
                found = stored.metadata() or {}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError) as error:
            return self._damaged(file, reason(error))
        _touch(file)
        geometry = self.model.geometry
        shape = (geometry.layers, geometry.kv_heads, length, geometry.head_dim)
        if any(tuple(side.shape) != shape or side.dtype != self.dtype for side in (keys, values)):
            return self._damaged(file, "another shape or dtype")
        if found.get("name") != file.stem:
            return self._damaged(file, "of another text")
        return (
            (keys, values) if found.get("crc32") == _checksum(keys, values) else self._damaged(file, "wrong checksum")
        )

    @staticmethod
    def _damaged(file: Path, why: str) -> None:
        warnings.warn(f"kept prefill {file} is damaged ({why}); it is computed again.", stacklevel=2)

    def _keep(self, file: Path, keys: Tensor, values: Tensor) -> None:
        """Write one text's prefill, if there is room. A full disk ends the keeping, not the run."""
        size = 2 * keys.numel() * keys.element_size()
        if not self.writes or file.parent.is_symlink() or file.is_dir() or not self._room(size):
            return
        tensors = {"keys": keys.cpu().contiguous(), "values": values.cpu().contiguous()}
        content = save(tensors, {"crc32": _checksum(*tensors.values()), "name": file.stem})
        try:
            write_file(file, lambda aside: aside.write_bytes(content))
            _touch(file)
            size = file.stat().st_size
            self.size, self._unseen = self.size + size, self._unseen + size
        except OSError as error:
            self._stop(f"cannot be written ({reason(error)})")

    def _room(self, size: int) -> bool:
        """Whether ``size`` bytes may be written, perhaps after what was unused for longest has gone.

        What any run has used since this store was opened stays: to throw out texts of this epoch for others of this
        epoch would help nobody.
        """
        if self.size + size <= self.limit and self._unseen <= self.limit / 100:  # others write too
            return True
        files = sorted(self._files())
        self.size, self._unseen = sum(size for _, size, _ in files), 0
        if self.size + size <= self.limit:
            return True
        for used, length, file in files:
            if used >= self._opened or self.size + size <= 0.9 * self.limit:  # some room for the next ones too
                break
            file.unlink(missing_ok=True)
            self.size -= length
        if self.size + size > self.limit:
            self._stop(f"is full (max_gb={self.limit / 1e9:g}) of texts in use")
        return self.writes

    def measure(self) -> int:
        """Bytes in the folder, whoever wrote them."""
        return sum(size for _, size, _ in self._files())

    def _stop(self, why: str) -> None:
        self.writes = False
        message = f"prefills.folder={str(self.folder)!r} {why}; further texts are computed in every epoch."
        warnings.warn(message, stacklevel=2)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and path of every file, also of those that a killed process left unfinished.

        Nothing but what a store has written, and nothing behind a link: it may be thrown out.
        """
        for file in self.folder.glob("??/*.safetensors"):
            if file.parent.is_symlink() or not _OWN.fullmatch(file.stem):
                continue
            try:
                status = file.stat()
            except OSError:  # gone meanwhile, as another process makes room; or a link in a circle
                continue
            yield status.st_mtime, status.st_size, file


def _touch(file: Path) -> None:
    """Note the last use, by this machine's clock, for those who look what may give way."""
    with suppress(OSError):  # a folder that may only be read; or it has gone
        now = time.time()
        os.utime(file, (now, now))


def fingerprint(model: FrozenModel) -> str:
    """A digest of all that a prefill depends on besides the tokens: weights as they are in memory, and the config."""
    config = {name: value for name, value in model.model.config.to_dict().items() if name not in _IGNORED}
    facts = json.dumps([model.weight_digests, config], sort_keys=True, default=str)
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def _checksum(keys: Tensor, values: Tensor) -> str:
    """CRC-32 of both tensors' bytes: against decay and cut files, not against an attacker."""
    checksum = 0
    for tensor in (keys, values):
        checksum = zlib.crc32(tensor.view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
