"""Keys, limits and bytes that are no message."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import Message
from lcf_lightning import header as header_module
from lcf_lightning import message as message_module
from lcf_lightning.errors import SettingError
from lcf_lightning.message import MAX_BYTES
from tests.message.making import (
    KEY,
    MAGIC,
    OTHER_KEY,
    flipped,
    message,
    origin,
    refuses,
    same,
)


@pytest.mark.parametrize("key", [b"", b"fifteen bytes.."])
def test_a_short_key_is_named(key: bytes, tmp_path: Path) -> None:
    message().save(tmp_path / "a.message", key=KEY)
    calls: list[Callable[[], object]] = [
        lambda: message().to_bytes(key=key),
        lambda: message().save(tmp_path / "b.message", key=key),
        lambda: Message.from_bytes(message().to_bytes(), key),
        lambda: Message.from_bytes(message().to_bytes(key=KEY), key),
        lambda: Message.load(tmp_path / "a.message", key),
    ]
    for call in calls:
        with pytest.raises(SettingError, match=f"must be at least 16 bytes, not {len(key)} bytes"):
            call()
    assert os.listdir(tmp_path) == ["a.message"]
    assert same(Message.from_bytes(message().to_bytes(key=KEY), KEY), message())


@pytest.mark.parametrize("key", [OTHER_KEY, KEY + b"\x01"])
def test_another_key_is_refused(key: bytes, tmp_path: Path) -> None:
    message().save(tmp_path / "a.message", key=KEY)
    with refuses("not authenticated by this key"):
        Message.from_bytes(message().to_bytes(key=KEY), key)
    with refuses("not authenticated by this key"):
        Message.load(tmp_path / "a.message", key)
    assert same(Message.load(tmp_path / "a.message", KEY), message())


def test_a_key_is_required_only_where_one_is_given() -> None:
    with refuses("not authenticated by this key: another key, none"):
        Message.from_bytes(message().to_bytes(), KEY)
    assert same(Message.from_bytes(message().to_bytes(key=KEY)), message())
    for place in range(8, 40):
        with refuses("not authenticated by this key"):
            Message.from_bytes(flipped(message().to_bytes(key=KEY), place), KEY)


def test_a_signed_message_that_is_read_without_a_key_is_warned_of(tmp_path: Path) -> None:
    signed, path = message().to_bytes(key=KEY), tmp_path / "a.message"
    path.write_bytes(signed)
    for read in (lambda **more: Message.from_bytes(signed, **more), lambda **more: Message.load(path, **more)):
        with pytest.warns(UserWarning, match="key=None, but this message is signed: who wrote it has not b") as warned:
            assert same(read(), message())
        assert [warning.filename for warning in warned] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert same(read(key=KEY), message())
            with refuses("message of another adapter"):
                read(origin=origin(adapter="b" * 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert same(Message.from_bytes(message().to_bytes()), message())


@pytest.mark.parametrize("data", ["text", bytearray(message().to_bytes())])
def test_what_is_not_bytes_is_refused(data: Any) -> None:
    for key in (None, KEY):
        with refuses(f"a message must be bytes, not {type(data).__name__}"):
            Message.from_bytes(data, key)


@pytest.mark.parametrize("key", [KEY])
def test_a_long_message_is_refused_unread(key: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = message().to_bytes(key=key)
    message().save(tmp_path / "a.message", key=key)
    assert same(Message.load(tmp_path / "a.message", key, max_bytes=len(data)), message())
    assert same(Message.from_bytes(data, key, max_bytes=len(data)), message())
    monkeypatch.setattr(message_module.hmac, "new", None)  # nor is a tag computed
    monkeypatch.setattr(header_module.json, "loads", None)
    for limit in (len(data) - 1, 100, 0):
        with refuses(f"message exceeds max_bytes={limit}"):
            Message.load(tmp_path / "a.message", key, max_bytes=limit)
        with refuses(f"message exceeds max_bytes={limit}"):
            Message.from_bytes(data, key, max_bytes=limit)
    with refuses(f"message exceeds max_bytes={MAX_BYTES}"):
        Message.from_bytes(bytes(MAX_BYTES + 1), key)


@pytest.mark.parametrize("limit", [2**40, 2**63])
def test_a_limit_far_above_a_message_takes_no_memory(limit: int, tmp_path: Path) -> None:
    message().save(tmp_path / "a.message")
    assert same(Message.load(tmp_path / "a.message", max_bytes=limit), message())
    assert same(Message.from_bytes(message().to_bytes(), max_bytes=limit), message())


@pytest.mark.parametrize("limit", [-1, 1.5, True])
def test_a_limit_that_is_none_is_named(limit: Any, tmp_path: Path) -> None:
    message().save(tmp_path / "a.message")
    for read, given in ((Message.load, tmp_path / "a.message"), (Message.from_bytes, message().to_bytes())):
        with pytest.raises(SettingError, match=f"max_bytes={limit!r} must be a whole number of at least 0"):
            read(given, max_bytes=limit)


@pytest.mark.parametrize("key", ["a text of sixteen", bytearray(KEY)])
def test_a_key_that_is_not_bytes_is_named(key: Any) -> None:
    for call in (message().to_bytes, lambda key: Message.from_bytes(message().to_bytes(key=KEY), key)):
        with pytest.raises(SettingError, match=f"must be at least 16 bytes, not {type(key).__name__}"):
            call(key=key)


@pytest.mark.parametrize(("dtype", "key"), [("float32", None), ("int8", KEY)])
def test_a_message_cut_anywhere_is_refused(dtype: str, key: bytes | None) -> None:
    data = message(spans=1, layers=1, heads=1).to_bytes(dtype, key)
    for length in range(len(data)):
        with refuses("no message|authenticated|cut off"):
            Message.from_bytes(data[:length], key)
    for tail in (b"\0", data):
        with refuses("authenticated|cut off or damaged"):
            Message.from_bytes(data + tail, key)


@pytest.mark.parametrize("key", [None])
def test_what_does_not_start_as_a_message_is_refused(key: bytes | None) -> None:
    data = message().to_bytes(key=key)
    changed = [flipped(data, place, bit) for place in range(8) for bit in range(8)]
    for other in (*changed, data[1:], b"\0" + data, data[8:], data.replace(b"\r\n", b"\n"), b"", MAGIC, MAGIC * 9):
        with refuses("no message, or its first few only|not authenticated|cut off, or longer"):
            Message.from_bytes(other, key)
    for other in changed:
        with refuses("these bytes are no message"):
            Message.from_bytes(other, key)
