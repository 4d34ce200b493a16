"""Writing files so that nothing is ever lost or half-written."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: whoever looks sees the old file or the whole new one."""
    write_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a file aside, of the same suffix, then rename it to ``path``.

    Raises:
        OSError: If the disk refuses; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        write(aside)
        os.replace(aside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        aside.unlink(missing_ok=True)
        raise


def move_aside(folder: Path, traces: Iterable[str]) -> Path | None:
    """Give a folder that holds any of ``traces`` another name, with the time of their last change.

    Returns:
        The new name; None where there was nothing to move.
    """
    times = [(folder / trace).stat().st_mtime for trace in traces if (folder / trace).exists()]
    if not times:
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(times)))
    names = (folder.with_name(f"{folder.name}-{stamp}{tail}") for tail in ("", *(f"-{i}" for i in range(1, 100))))
    aside = next(name for name in names if not name.exists())
    os.rename(folder, aside)
    return aside
