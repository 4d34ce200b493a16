"""The folder that a command writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcf_lightning.errors import SettingError


def new_folder(output: str | Path) -> Path:
    """``output`` as the folder that a command is to write; a SettingError if it is there already."""
    if Path(output).exists():
        raise SettingError(f"output={str(output)!r} exists; name a folder that does not.")
    return Path(output)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Where to write the new folder ``output``, which has its name once all of it is there: a kill leaves none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as aside:
        folder = Path(aside) / output.name
        yield folder
        os.rename(folder, output)
