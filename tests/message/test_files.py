"""Messages in files."""

from __future__ import annotations

import errno
import io
import math
import os
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import Message
from lcf_lightning import message as message_module
from lcf_lightning.errors import MessageError
from tests.message.making import (
    KEY,
    message,
    origin,
    refuses,
    same,
    with_value,
)


@pytest.mark.parametrize("limit", [100])
def test_no_more_of_a_file_is_read_than_may_be(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size >= 0
            read.append(size)
            return bytes(size)

    (tmp_path / "a.message").touch()
    monkeypatch.setattr(message_module.Path, "open", lambda *_: Endless())
    with refuses(f"exceeds max_bytes={limit}"):
        Message.load(tmp_path / "a.message", max_bytes=limit)
    assert 0 < sum(read) <= limit + 1


@pytest.mark.parametrize("dtype", ["float32"])
def test_what_is_refused_from_bytes_is_refused_from_a_file(dtype: str, tmp_path: Path) -> None:
    data, path = message().to_bytes(dtype, KEY), tmp_path / "a.message"
    for other, match in (
        (b"", "no message"),
        (data[:-1], "damaged"),
        (data[:200], "JSON|cut"),
        (data + b"\0", "damaged"),
    ):
        path.write_bytes(other)
        with refuses(match):
            Message.load(path)
        with refuses("no message|not authenticated by this key"):
            Message.load(path, KEY)
    path.write_bytes(data)
    assert same(Message.load(path, KEY, origin()), Message.from_bytes(data))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "it is no regular file"),
        (tmp_path / "pipe", "it is no regular file"),
        (tmp_path / "file" / "a.message", "Not a directory"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        for given in (path, str(path)):
            with refuses(f"message file {str(path)!r} cannot be read: {why}"):
                Message.load(given, KEY)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_a_file_is_written_aside_then_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, seen = tmp_path / "a.message", os.replace, []
    message().save(path)

    def looked(aside: Path, final: Path) -> None:
        seen.append((aside.read_bytes(), final.read_bytes(), aside.parent, final))
        rename(aside, final)

    monkeypatch.setattr("lcf_lightning.files.os.replace", looked)
    message(seed=1).save(path, "float16", KEY)
    assert seen == [(message(seed=1).to_bytes("float16", KEY), message().to_bytes(), tmp_path, path)]
    assert os.listdir(tmp_path) == ["a.message"]
    assert same(Message.load(path, KEY), Message.from_bytes(message(seed=1).to_bytes("float16")))


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_nothing_half_written_is_left(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.message"
    message().save(path)

    def full(target: Path, *rest: Any) -> None:
        if fails == "write_bytes":
            target.touch()
            with target.open("wb") as file:
                file.write(rest[0][:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        "pathlib.Path.write_bytes" if fails == "write_bytes" else "lcf_lightning.files.os.replace", full
    )
    with pytest.raises(OSError, match="No space left on device.*a.message"):
        message(seed=1).save(path)
    with pytest.raises(MessageError, match="not finite"):
        with_value(math.nan).save(path)
    assert os.listdir(tmp_path) == ["a.message"]
    assert same(Message.load(path), message())
