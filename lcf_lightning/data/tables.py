"""Tables of rows, from a local file or the hub, as `datasets` reads them."""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

_DEEPEST = 500  # levels; a reader written in C may fall over more
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKETS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_OTHERS = bytes(sorted(set(range(256)) - _BRACKETS.keys()))


def local_table(file: Path, loader: str, split: str) -> datasets.Dataset:
    """The rows of a local file, which is one split, whatever it holds; only a slice of ``split`` is meant as such.

    Raises:
        OSError, EOFError, StopIteration, ValueError, RecursionError, datasets.exceptions.DatasetsError: If it cannot
            be read.
    """
    import datasets

    if loader == "json":
        _require_shallow(file)
    part = "".join(split.partition("[")[1:])
    return datasets.load_dataset(loader, data_files=str(file), split=f"train{part}")


def hub_table(location: str, config: str | None, split: str, **options: str) -> datasets.Dataset:
    """The rows of a split on the hub: of one configuration, its only one (null), or all of them (``*``).

    Raises:
        OSError, ValueError, datasets.exceptions.DatasetsError: If it cannot be read.
    """
    import datasets

    if config != "*":
        return datasets.load_dataset(location, config, split=split, **options)
    names = datasets.get_dataset_config_names(location)
    return datasets.concatenate_datasets([datasets.load_dataset(location, name, split=split) for name in names])


def _require_shallow(file: Path) -> None:
    """Raise a ValueError if JSON is nested so deep, over one line or many, that its reader would end the process."""
    depth = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                brackets = _TEXT.sub(b"", line).translate(None, _OTHERS)
                opened = brackets.count(b"[") + brackets.count(b"{")
                within = accumulate((_BRACKETS[sign] for sign in brackets), initial=depth)
                if depth + opened > _DEEPEST and max(within) > _DEEPEST:
                    raise ValueError(f"line {number} is nested too deep")
                depth = max(0, depth + 2 * opened - len(brackets))
    except zlib.error as error:
        raise OSError(f"it is damaged: {error}") from error
