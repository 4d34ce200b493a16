"""Tables of rows, from a local file or the hub, as `datasets` reads them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

_BRACKETS = 1_000  # more of them in a line, and it may be nested deeper than any reader goes


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
    """Raise a ValueError if a line of JSON is nested so deep that a reader written in C would fall over it."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.count(b"[") + line.count(b"{") > _BRACKETS:
                try:
                    json.loads(line)
                except RecursionError:
                    raise ValueError(f"line {number} is nested too deep") from None
                except ValueError:
                    pass  # `datasets` tells it in its own words
