from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lcf_lightning.cli.folders import whole_folder
from lcf_lightning.errors import SettingError
from lcf_lightning.files import LOCK_FILE, FolderLock, unfinished, write_file, write_text
from lcf_lightning.loggers import ContinuedCSVLogger


def test_writing_replaces_whole_files(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    write_text(file, "old")
    write_text(file, "new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "b.json"
    write_text(file, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_resumed_run_keeps_its_metrics(tmp_path: Path) -> None:
    for step, metrics in ((1, {"loss": 2.0}), (2, {"loss": 1.0, "val/loss": 3.0})):
        logger = ContinuedCSVLogger(tmp_path, "run", version="")
        logger.log_metrics(metrics, step)
        logger.save()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["val/loss"]) for row in rows] == [("1", "2.0", ""), ("2", "1.0", "3.0")]
    assert len(rows) == 2


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'b.json'}'"):
        write_file(tmp_path / "b.json", fail)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_one_processs_until_that_ends(tmp_path: Path) -> None:
    """However it ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(SettingError, match="output='.*' is being written by another process; name another folder"),
            FolderLock(tmp_path, "output"),
        ):
            pass
        other.kill()
    with FolderLock(tmp_path, "output"):
        pass


@pytest.mark.parametrize("place", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_the_place_of_a_lock_is_refused(tmp_path: Path, place: Callable[[Path], None]) -> None:
    place(tmp_path / LOCK_FILE)
    with (
        pytest.raises(SettingError, match=r"output='.*' holds \.lock, which is no file"),
        FolderLock(tmp_path, "output"),
    ):
        pass


def test_a_folder_that_is_shared_is_one_runs_until_all_of_it_ends(tmp_path: Path) -> None:
    def refused(shared: bool) -> None:
        with pytest.raises(SettingError, match="is being written by another process"):
            FolderLock(tmp_path, "output", shared).__enter__()

    with FolderLock(tmp_path, "output") as first, ExitStack() as held:
        refused(shared=True)
        first.share()
        second = held.enter_context(FolderLock(tmp_path, "output", shared=True))
        refused(shared=False)
        first.__exit__()
        refused(shared=False)
        second.__exit__()
        held.enter_context(FolderLock(tmp_path, "output"))


def test_a_folder_that_is_moved_aside_is_followed_by_one_that_is_locked_too(tmp_path: Path) -> None:
    """A folder that is a link, too: to another disk, say."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    with FolderLock(tmp_path / "run", "output") as lock:
        (tmp_path / "run" / "config.yaml").touch()
        assert lock.move_aside(["config.yaml"]) is not None
        assert not (tmp_path / "run" / "config.yaml").exists()
        for name, taken in (("run", True), ("scratch", False)):
            other = FolderLock(tmp_path / name, "output")
            if taken:
                with pytest.raises(SettingError, match="is being written by another process"):
                    other.__enter__()
            else:
                with other:
                    pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(SettingError, match="output='.*' cannot be locked against a second process: .*not supported"),
        FolderLock(tmp_path, "output"),
    ):
        pass


def test_a_child_that_outlives_this_process_keeps_no_lock(tmp_path: Path) -> None:
    """Workers of a loader, say, whose parent was killed."""
    (ends, waits), (begun, begins) = os.pipe(), os.pipe()
    with FolderLock(tmp_path, "output"):
        child = os.fork()
        if child == 0:
            os.close(waits)
            os.write(begins, b"!")
            os.read(ends, 1)  # until the parent lets go of the pipe
            os._exit(0)
        os.read(begun, 1)
    with FolderLock(tmp_path, "output"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(waits)
    os.waitpid(child, 0)


def test_a_new_folder_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    """So that a killed command can be started again: `new_folder` refuses what is there."""
    with whole_folder(tmp_path / "made" / "adapter") as aside:
        write_text(aside / "config.json", "{}")
        assert not (tmp_path / "made" / "adapter").exists()
    with suppress(KeyboardInterrupt), whole_folder(tmp_path / "made" / "other") as aside:
        write_text(aside / "config.json", "{}")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["adapter"]
    assert [path.name for path in (tmp_path / "made" / "adapter").iterdir()] == ["config.json"]


def test_what_a_killed_writer_has_left_is_known(tmp_path: Path) -> None:
    for name in (".arms-7ac7fd85.png", "arms.png", ".arms-7ac7fd8.png", ".other-7ac7fd85.png", ".arms-7ac7fd85.txt"):
        (tmp_path / name).touch()
    assert unfinished(tmp_path, ["arms.png", "report.json"]) == [tmp_path / ".arms-7ac7fd85.png"]
