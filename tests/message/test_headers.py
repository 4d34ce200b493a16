"""Headers that are not as `to_bytes` writes them."""

from __future__ import annotations

import hmac
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import Message
from tests.message.making import (
    COUNTS,
    FRAME,
    KEY,
    MAGIC,
    OTHER_KEY,
    WIRE_DTYPES,
    flipped,
    framed,
    message,
    origin,
    parts,
    refuses,
    resigned,
    same,
)


@pytest.mark.parametrize("change", [{"spans": 4}, {"more": 1}])
def test_without_the_right_key_no_header_is_read(change: dict[str, Any]) -> None:
    data = message().to_bytes(key=KEY)
    with refuses("not authenticated by this key"):
        Message.from_bytes(resigned(data, OTHER_KEY, **change), KEY, origin())
    with refuses("not authenticated by this key"):
        Message.from_bytes(resigned(data, **change), KEY, origin())
    with refuses("header|exactly the tensors|another adapter"):
        Message.from_bytes(resigned(data, KEY, **change), KEY, origin())


NO_JSON = [
    b"", b" ", b"{", b'{"format": 1', b"{'format': 1}", b'{"format": 1}}', b'{"format": 1,}', b"\xff\xfe", b"nul",
    b'{"format": "\n"}', b"[" * 4000, b"[" * 2000 + b"]" * 2000, b'{"format":' * 330 + b"1" + b"}" * 330,
]  # fmt: skip


def test_a_header_that_is_no_json_is_refused() -> None:
    _, payload = parts(message().to_bytes())
    for head in NO_JSON:
        with refuses("header is no JSON|format=.{1,40} is unknown"):  # some nest little enough for some Pythons
            Message.from_bytes(framed(head, payload, KEY), KEY)
        with refuses("header is no JSON"):
            Message.from_bytes(framed(b"[" + head, payload))


@pytest.mark.parametrize("depth", [1, 500, 1900])
def test_a_header_nested_however_deeply_is_refused(depth: int) -> None:
    for opened, closed in ((b"[", b"]"), (b'{"":', b"1" + b"}")):
        inner = opened * depth + closed[:-1] + closed[-1:] * depth
        for head in (inner, b'{"format": ' + inner + b"}"):
            with refuses("no JSON|is unknown|longer than 4096"):
                Message.from_bytes(framed(head, b"", KEY), KEY)


@pytest.mark.parametrize("head", [b"[]", b'"format"', b"null", b"NaN"])
def test_a_header_that_is_no_object_is_refused(head: bytes) -> None:
    with refuses("format=None is unknown; this release reads 1 and 2"):
        Message.from_bytes(framed(head, b""))
    with refuses("header is no JSON"):
        Message.from_bytes(framed(head + b"}", b"", KEY), KEY)


@pytest.mark.parametrize("length", [4097, 2**32 - 1])
def test_a_header_that_is_cut_off_or_too_long_is_refused(length: int) -> None:
    data = message(spans=400).to_bytes()
    assert len(data) > 2**16 + FRAME.size
    for key in (None, KEY):
        body = struct.pack("<I", length) + data[FRAME.size :]
        tag = hmac.digest(key, MAGIC + body, "sha256") if key else bytes(32)
        with refuses(f"header of {length} bytes is cut off, or longer than 4096"):
            Message.from_bytes(MAGIC + tag + body, key)


@pytest.mark.parametrize("key", [None])
def test_a_header_is_at_most_4096_bytes_and_all_there(key: bytes | None) -> None:
    header, payload = parts(message().to_bytes())
    head = json.dumps(header).encode()
    assert same(Message.from_bytes(framed(head.ljust(4096), payload, key), key), message())
    with refuses("header of 4097 bytes is cut off, or longer than 4096"):
        Message.from_bytes(framed(head.ljust(4097), payload, key), key)
    alone = framed(head, b"")
    with refuses(f"header of {len(head) + 1} bytes is cut off"):
        Message.from_bytes(alone[:40] + struct.pack("<I", len(head) + 1) + head)


@pytest.mark.parametrize("version", [0, 3, "1", None, [1], 10**400, False, "\ud800"])
def test_another_format_is_refused(version: Any) -> None:
    for key in (None, KEY):
        with refuses("format=.{1,40} is unknown; this release reads 1 and 2"):
            Message.from_bytes(resigned(message().to_bytes(), key, format=version), key)
        with refuses("format=.{1,40} is unknown"):
            Message.from_bytes(framed(json.dumps({"format": version}).encode(), b"", key), key)


WRONG_COUNTS = (0, -1, 2**20 + 1, 10**400, True, 2.0, "2", None, [2], math.nan, math.inf)
WRONG_TEXTS = ("", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "٣" * 32, 5, True, [], {}, math.nan)
WRONG_DIGESTS = (None, "", "a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n", 7, ["a" * 64])
WRONG_FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(COUNTS, WRONG_COUNTS),
    **dict.fromkeys(("sharer", "receiver", "prompt"), WRONG_TEXTS),
    "adapter": (*WRONG_TEXTS, None),
    "sha256": WRONG_DIGESTS,
    "dtype": ("float64", "F32", "", None, 32, ["int8"], {"int8": 1}, True),
    "format": (True, 1.0),
    "pooled": (0, 1, None, "true", []),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_field_of_another_kind_is_refused(name: str) -> None:
    for value in WRONG_FIELDS[name]:
        with refuses(f"message header: {name}=.{{1,40}} is not allowed"):
            Message.from_bytes(resigned(message().to_bytes(), KEY, **{name: value}), KEY)


def test_a_header_must_hold_exactly_its_fields() -> None:
    header, payload = parts(message().to_bytes())
    assert len(header) == 12
    for name in header.keys() - {"format"}:
        less = {other: value for other, value in header.items() if other != name}
        for changed in (less, {**less, name.upper(): header[name]}, {**header, name + " ": 1}):
            with refuses(f"must hold exactly .*{name}"):
                Message.from_bytes(framed(json.dumps(changed).encode(), payload, KEY), KEY)
    for more in ("", "origin", "tensors"):
        with refuses(
            "must hold exactly adapter, dtype, format, head_dim, heads, layers, pooled, prompt, receiver, sha256, "
        ):
            Message.from_bytes(resigned(message().to_bytes(), **{more: None}))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("adapter", "b" * 32), ("sharer", "b" * 32), ("receiver", "b" * 32), ("layers", 4),
        ("heads", 1), ("head_dim", 8),
    ],
)  # fmt: skip
def test_a_message_of_another_adapter_or_pair_is_refused(name: str, other: Any, tmp_path: Path) -> None:
    sent, expected = message(receiver="c" * 32), origin(**{name: other})
    sent.save(tmp_path / "a.message")
    found = getattr(sent.origin, name)
    match = f"message of another adapter or pair: {name}={found!r}, expected {other!r}.$"
    with refuses(match):
        Message.from_bytes(sent.to_bytes(), origin=expected)
    with refuses(match):
        Message.load(tmp_path / "a.message", origin=expected)
    assert same(Message.from_bytes(sent.to_bytes(), origin=origin()), sent)


def test_all_that_differs_between_two_pairs_is_named() -> None:
    sent, expected = message(receiver="e" * 32), origin(adapter="b" * 32, receiver="c" * 32, heads=7)
    with refuses("adapter='a0.*; receiver='ee.*, expected 'cc.*; heads=2, expected 7"):
        Message.from_bytes(sent.to_bytes(), origin=expected)
    assert sent.origin.require(origin()) is None


@pytest.mark.parametrize("name", ["adapter", "prompt"])
def test_damage_to_a_fingerprint_is_noticed_without_a_key(name: str) -> None:
    sent = message(receiver="c" * 32, prompt="d" * 32)
    data = sent.to_bytes()
    start = data.index(f'"{name}": "'.encode()) + len(name) + 5
    for place in range(start, start + 32):
        with refuses("damaged: the digest is another|message header: "):
            Message.from_bytes(flipped(data, place))
    assert same(Message.from_bytes(data), sent)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in COUNTS), ("spans", "int8"), ("dtype", "float16")]
)
def test_a_payload_that_is_not_what_its_header_says_is_refused(name: str, dtype: str) -> None:
    data = message().to_bytes(dtype)
    others: list[Any] = [each for each in WIRE_DTYPES if each != dtype] if name == "dtype" else [1, 5, 2**20]
    for other in others:
        with refuses("does not hold exactly the tensors of its header"):
            Message.from_bytes(resigned(data, KEY, **{name: other}), KEY)


def test_counts_swapped_in_the_header_are_refused() -> None:
    """As many numbers, of another shape."""
    data = message().to_bytes()
    for one, other in (("layers", "heads"), ("heads", "head_dim"), ("spans", "head_dim")):
        header, _ = parts(data)
        with refuses("does not hold exactly the tensors of its header"):
            Message.from_bytes(resigned(data, KEY, **{one: header[other], other: header[one]}), KEY)
