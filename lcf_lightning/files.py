"""Writing files so that nothing is ever lost or half-written."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from weakref import WeakSet

from lcf_lightning.errors import SettingError, reason

LOCK_FILE = ".lock"
_HELD: WeakSet[IO[str]] = WeakSet()  # a child that outlives this process must not keep its locks
os.register_at_fork(after_in_child=lambda: [file.close() for file in list(_HELD)])


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


def require_regular(path: Path) -> None:
    """Raise an OSError unless a path is a regular file: to open a pipe would wait for who writes into it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def unfinished(folder: Path, names: Iterable[str]) -> list[Path]:
    """What a killed process has left of writing files with these names: see `write_file`."""
    eight = "[0-9a-f]" * 8
    return [
        found for name in map(Path, names) for found in folder.glob(f".{glob.escape(name.stem)}-{eight}{name.suffix}")
    ]


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """One process at a time, the others wait; the kernel lets go of ``file`` when a process ends, however that ends.

    Where the file system has no locks nobody waits.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        _HELD.add(opened)
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_UN)  # at once, though children may have the file open


class FolderLock:
    """A folder, made where there is none, that only one process or, once it shares, one run may have; a context.

    The kernel lets go of it when the process ends, however that ends.

    Args:
        folder: The folder.
        setting: The setting that names it.
        shared: Whether another process of this run has it, and shares it.

    Raises:
        SettingError: On entry, or where it is moved aside: if another process has it, or its file system has no locks.
    """

    def __init__(self, folder: Path, setting: str, shared: bool = False) -> None:
        self.folder, self.setting, self.shared = folder, setting, shared
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        self._file = self._taken()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def share(self) -> None:
        """From now on other processes may have it with ``shared``, and nobody without."""
        assert self._file is not None
        self.shared = True
        self._lock(self._file)

    def move_aside(self, traces: Iterable[str]) -> Path | None:
        """`move_aside`, and have the new folder of this name instead."""
        aside = move_aside(self.folder, traces)
        if aside is not None:
            new = self._taken()
            self.__exit__()
            self._file = new
        return aside

    def put_back(self, aside: Path) -> None:
        """Undo `move_aside`: the folder is what it was, without what has been written since."""
        shutil.rmtree(self.folder)
        os.rename(aside, self.folder)

    def _taken(self) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / LOCK_FILE
        if place.exists() and not place.is_file():
            raise SettingError(
                f"{self.setting}={str(self.folder)!r} holds {LOCK_FILE}, which is no file of this package."
            )
        file = place.open("a+")  # NFS asks a shared lock for a file that can be read
        _HELD.add(file)
        self._lock(file)
        return file

    def _lock(self, file: IO[str]) -> None:
        named = f"{self.setting}={str(self.folder)!r}"
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise SettingError(f"{named} is being written by another process; name another folder.") from error
        except OSError as error:
            file.close()
            raise SettingError(f"{named} cannot be locked against a second process: {reason(error)}.") from error


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
