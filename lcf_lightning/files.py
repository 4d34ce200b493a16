"""Writing files so that nothing is ever lost or half-written."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lcf_lightning.errors import SettingError, reason

LOCK_FILE = ".lock"


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


@contextmanager
def locked(folder: Path, setting: str) -> Iterator[None]:
    """Have a folder, which is made where there is none, for this process alone.

    The kernel lets go of it when the process ends, however that ends.

    Args:
        folder: The folder.
        setting: The setting that names it.

    Raises:
        SettingError: If another process has it, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SettingError(
            f"{setting}={str(folder)!r} is being written by another process; name another folder."
        ) from error
    except (NotImplementedError, OSError) as error:
        raise SettingError(
            f"{setting}={str(folder)!r} cannot be locked against a second process: {reason(error)}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def move_aside(folder: Path, traces: Iterable[str]) -> Path | None:
    """Give a folder that holds any of ``traces`` another name, with the time of their last change.

    A lock on it (`locked`) stays where it was, in a new folder.

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
    if (aside / LOCK_FILE).exists():
        folder.mkdir()
        os.rename(aside / LOCK_FILE, folder / LOCK_FILE)
    return aside
