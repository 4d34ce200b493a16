from __future__ import annotations

import errno
import hashlib
import hmac
import io
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lcf_lightning import Message
from lcf_lightning import message as message_module
from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.message import MAX_BYTES, Origin

Tensors = dict[str, Tensor]
MAGIC = b"LCFMSG\r\n"
FRAME = struct.Struct("<8s32sI")  # magic, tag, length of the header
KEY, OTHER_KEY = b"sixteen bytes...", b"sixteen others.."
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIRE_DTYPES = (*FLOATS, "int8")
MAKERS = ("frombuffer", "from_numpy", "tensor", "as_tensor", "asarray", "empty", "zeros")
COUNTS = ("layers", "heads", "head_dim", "spans")


def origin(**fields: Any) -> Origin:
    defaults = {"adapter": "a0" * 16, "sharer": "5b" * 16, "receiver": None, "layers": 3, "heads": 2, "head_dim": 4}
    return Origin(**{**defaults, **fields})


def message(dtype: str = "float32", spans: int = 3, seed: int = 0, prompt: str | None = None, **fields: Any) -> Message:
    """Random numbers and, for the first, one that only a sign tells from zero."""
    whose, generator = origin(**fields), torch.Generator().manual_seed(seed)
    shape = (whose.layers, 1, whose.heads, spans, whose.head_dim)
    keys, values = (torch.randn(shape, generator=generator).to(FLOATS[dtype]) for _ in range(2))
    keys[0, 0, 0, 0, 0] = -0.0
    return Message(keys, values, whose, prompt=prompt)


def with_value(value: float, place: int = 0, side: str = "keys", dtype: str = "float32") -> Message:
    """A message in which one number is another."""
    found = message(dtype)
    getattr(found, side).view(-1)[place] = value
    return found


def equal(one: Tensor, other: Tensor) -> bool:
    """Bit by bit."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and torch.equal(*(each.contiguous().view(torch.uint8) for each in (one, other)))


def same(one: Message, other: Message) -> bool:
    alike = (one.origin, one.pooled, one.prompt) == (other.origin, other.pooled, other.prompt)
    return alike and equal(one.keys, other.keys) and equal(one.values, other.values)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload."""
    end = FRAME.size + FRAME.unpack_from(data)[2]
    return json.loads(data[FRAME.size : end]), data[end:]


def framed(head: bytes, payload: bytes, key: bytes | None = None) -> bytes:
    """Any header and payload as they would travel."""
    body = struct.pack("<I", len(head)) + head + payload
    return MAGIC + (hmac.digest(key, MAGIC + body, "sha256") if key else bytes(32)) + body


def digest(header: dict[str, Any], payload: bytes) -> str:
    """Of a header, its own digest left out, and its payload."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + payload).hexdigest()


def resigned(data: bytes, key: bytes | None = None, payload: bytes | None = None, **changed: Any) -> bytes:
    """Another payload and other fields in the header, with their own digest and tag."""
    header, own = parts(data)
    payload = own if payload is None else payload
    header |= changed
    header |= {"sha256": changed.get("sha256", digest(header, payload))}
    return framed(json.dumps(header).encode(), payload, key)


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place:][1:]


@contextmanager
def refuses(match: str) -> Iterator[None]:
    """A MessageError that says so, before any tensor has been made."""

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made")

    with pytest.MonkeyPatch.context() as patch:
        for maker in MAKERS:
            patch.setattr(message_module.torch, maker, made)
        with pytest.raises(MessageError, match=match):
            yield


def test_a_tensor_made_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="a tensor was made"), refuses("whatever"):
        Message.from_bytes(message().to_bytes())
    with pytest.raises(AssertionError, match="a tensor was made"), refuses("whatever"):
        Message.from_bytes(message().to_bytes("int8", KEY), KEY)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_arrive_as_they_were(dtype: str, tmp_path: Path) -> None:
    sent, key, spans = message(dtype, 57), KEY, 57
    arrived = Message.from_bytes(sent.to_bytes(key=key), key)
    sent.save(tmp_path / "new" / "a.message", key=key)
    read = Message.load(str(tmp_path / "new" / "a.message"), key, origin())
    assert same(arrived, sent)
    assert same(read, sent)
    assert (arrived.keys.dtype, arrived.spans) == (FLOATS[dtype], spans)
    arrived.keys.add_(1)  # memory of its own
    assert same(Message.from_bytes(sent.to_bytes(key=key), key), sent)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_arrives_may_be_written_to_and_nothing_warns(dtype: str, recwarn: pytest.WarningsRecorder) -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        arrived = Message.from_bytes(message().to_bytes(dtype))
    finally:
        torch.set_warn_always(always)
    assert arrived.keys.zero_().sum() == 0
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(("own", "dtype"), [("float32", "float16"), ("bfloat16", "float32")])
def test_floats_are_rounded_once_where_another_dtype_is_asked_for(own: str, dtype: str, tmp_path: Path) -> None:
    sent = message(own)
    arrived = Message.from_bytes(sent.to_bytes(dtype))
    sent.save(tmp_path / "a.message", dtype)
    assert equal(arrived.keys, sent.keys.to(FLOATS[dtype]))
    assert equal(arrived.values, sent.values.to(FLOATS[dtype]))
    assert same(Message.load(tmp_path / "a.message"), arrived)
    assert (tmp_path / "a.message").read_bytes() == sent.to_bytes(dtype)


def extremes(dtype: torch.dtype) -> Tensor:
    """Of both signs: the largest number, the least normal one, the least of all, and zero."""
    info = torch.finfo(dtype)
    numbers = torch.tensor([info.max, -info.max / 2, info.tiny, info.eps, 0.0], dtype=dtype)
    least = torch.ones(1, dtype=torch.int32 if dtype == torch.float32 else torch.int16).view(dtype)
    numbers = torch.cat([numbers, least])
    return torch.cat([numbers, -numbers])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_numbers_arrive(dtype: str) -> None:
    keys = extremes(FLOATS[dtype]).reshape(3, 1, 1, 1, 4)
    sent = Message(keys, keys.flip(0), origin(heads=1))
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert equal(Message.from_bytes(sent.to_bytes("float32")).keys, keys.float())


@pytest.mark.parametrize("fields", [{"sharer": None}, {"receiver": "c1" * 16}])
def test_a_model_may_be_known_or_not(fields: dict[str, Any]) -> None:
    sent = message(**fields)
    assert same(Message.from_bytes(sent.to_bytes(key=KEY), KEY, origin(**fields)), sent)
    assert same(Message.from_bytes(sent.to_bytes(), origin=origin()), sent)  # what one of both does not know


@pytest.mark.parametrize("name", ["sharer", "receiver"])
def test_a_model_that_one_side_does_not_know_may_be_any(name: str) -> None:
    known, unknown, other = (message(**{name: value}) for value in ("c" * 32, None, "b" * 32))
    assert same(Message.from_bytes(known.to_bytes(), origin=unknown.origin), known)
    assert same(Message.from_bytes(unknown.to_bytes(), origin=known.origin), unknown)
    with refuses(f"pair: {name}='c+', expected 'b+'.$"):
        Message.from_bytes(known.to_bytes(), origin=other.origin)


@pytest.mark.parametrize("pooled", [False, True])
def test_whether_a_message_is_pooled_arrives(pooled: bool, tmp_path: Path) -> None:
    sent = replace(message(spans=1), pooled=pooled)
    sent.save(tmp_path / "a.message", key=KEY)
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert same(Message.load(tmp_path / "a.message", KEY), sent)
    assert parts(sent.to_bytes())[0]["pooled"] is pooled
    other = (b'"pooled": true', b'"pooled":false') if pooled else (b'"pooled": false', b'"pooled":  true')
    with refuses("damaged: the digest is another"):
        Message.from_bytes(sent.to_bytes().replace(*other))


def test_the_text_that_a_message_was_sent_for_arrives(tmp_path: Path) -> None:
    sent = message(prompt="d2" * 16)
    sent.save(tmp_path / "a.message", key=KEY)
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert same(Message.load(tmp_path / "a.message", KEY, origin()), sent)
    assert (Message.from_bytes(sent.to_bytes("int8")).prompt, message().prompt) == ("d2" * 16, None)
    assert parts(sent.to_bytes())[0]["prompt"] == "d2" * 16


def half_steps(sent: Tensor, arrived: Tensor) -> Tensor:
    """The error in halves of each vector's own step; zero where there is no step."""
    sent, arrived = sent.double(), arrived.double()
    step = sent.abs().amax(-1, keepdim=True) / 127
    return torch.where(sent == arrived, 0.0, (sent - arrived).abs() / (step / 2))


@pytest.mark.parametrize(("own", "spans"), [("float32", 57), ("float16", 1)])
def test_int8_is_off_by_half_a_step_of_each_vector(own: str, spans: int) -> None:
    sent = message(own, spans)
    sent.keys.mul_(10.0 ** torch.linspace(-3, 3, sent.keys[..., :1].numel()).reshape(sent.keys[..., :1].shape))
    sent.values[1] = 0.0
    arrived = Message.from_bytes(sent.to_bytes("int8"))
    assert (arrived.keys.dtype, arrived.keys.shape, arrived.origin) == (torch.float32, sent.keys.shape, sent.origin)
    for one, other in ((sent.keys, arrived.keys), (sent.values, arrived.values)):
        assert half_steps(one, other).max() <= 1 + 1e-4
        torch.testing.assert_close(other.abs().amax(-1), one.float().abs().amax(-1), rtol=1e-6, atol=0.0)
    assert (arrived.values[1] == 0).all()


@pytest.mark.parametrize("largest", [1e-30, 1e-38])
def test_int8_is_off_by_half_a_step_however_small_the_vector_is(largest: float) -> None:
    """Its scale may be less than the least normal number."""
    sent = message()
    sent = replace(sent, keys=sent.keys / sent.keys.abs().amax(-1, keepdim=True) * largest)
    arrived = Message.from_bytes(sent.to_bytes("int8"))
    assert torch.isfinite(arrived.keys).all()
    assert half_steps(sent.keys, arrived.keys).max() <= 1 + 1e-2  # a scale so small has few digits


@pytest.mark.parametrize("units", [1, 191])
def test_int8_keeps_every_sign_where_a_scale_has_no_digits(units: int) -> None:
    """As many times the least number of all."""
    sent = message()
    least = torch.ones_like(sent.keys, dtype=torch.int32).view(torch.float32)
    up, down = (
        Message.from_bytes(replace(sent, keys=keys).to_bytes("int8")).keys for keys in (least * units, least * -units)
    )
    assert ((up >= 0) & (up <= 2 * units * least)).all()
    assert torch.equal(up, -down)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.5), ("float32", 0.995), ("float32", 1.0)])
def test_what_int8_can_write_it_can_read(dtype: str, share: float) -> None:
    """Up to the largest number, or the sharer is told."""
    sent = with_value(share * torch.finfo(FLOATS[dtype]).max, dtype=dtype)
    data = b""
    with suppress(MessageError):
        data = sent.to_bytes("int8")
    assert data or share > 0.99
    if data:
        arrived = Message.from_bytes(data)
        assert torch.isfinite(arrived.keys).all()
        assert half_steps(sent.keys, arrived.keys).max() <= 1 + 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_message_says_the_same_each_time(dtype: str) -> None:
    sent = message()
    learned = replace(sent, values=sent.values.clone().requires_grad_())
    for key in (None, KEY):
        assert len({each.to_bytes(dtype, key) for each in [message(), sent, learned] * 8}) == 1
        arrived = Message.from_bytes(sent.to_bytes(dtype, key))
        if dtype != "int8":
            assert arrived.to_bytes(key=key) == sent.to_bytes(dtype, key)
    assert sent.to_bytes(dtype, KEY) != sent.to_bytes(dtype)
    assert message(seed=1).to_bytes(dtype) != sent.to_bytes(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_how_tensors_lie_in_memory_does_not_matter(dtype: str) -> None:
    sent, axes = message(), (2, 3)
    scattered = replace(sent, keys=sent.keys.transpose(*axes).contiguous().transpose(*axes))
    part = replace(sent, keys=torch.cat([sent.keys, sent.values], -1)[..., :4])
    for each in (scattered, part):
        assert not each.keys.is_contiguous()
        assert each.to_bytes(dtype) == sent.to_bytes(dtype)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_keys_and_values_may_be_one_tensor(dtype: str) -> None:
    sent = message(dtype if dtype in FLOATS else "float32")
    twice = replace(sent, values=sent.keys)
    arrived = Message.from_bytes(twice.to_bytes(dtype, KEY), KEY)
    assert equal(arrived.keys, arrived.values)
    assert twice.to_bytes(dtype) == replace(sent, values=sent.keys.clone()).to_bytes(dtype)


@pytest.mark.parametrize(("dtype", "key"), [("float16", None), ("int8", KEY)])
def test_bytes_are_laid_out_as_the_docstring_says(dtype: str, key: bytes | None) -> None:
    sent = message(spans=5)
    data = sent.to_bytes(dtype, key)
    magic, tag, length = FRAME.unpack_from(data)
    head, payload = data[FRAME.size : FRAME.size + length], data[FRAME.size + length :]
    assert magic == MAGIC
    assert tag == (hmac.digest(key, magic + data[40:], "sha256") if key else bytes(32))
    header = {
        "format": 1, "adapter": "a0" * 16, "sharer": "5b" * 16, "receiver": None, "layers": 3, "heads": 2,
        "head_dim": 4, "dtype": dtype, "spans": 5, "pooled": False, "prompt": None,
    }  # fmt: skip
    assert json.loads(head) == {**header, "sha256": digest(header, payload)}
    assert head == json.dumps(json.loads(head), sort_keys=True).encode()
    tensors = safetensors.torch.load(payload)
    assert all(tensors[side].shape == (3, 2, 5, 4) for side in ("keys", "values"))
    if dtype == "int8":
        assert {tensors[f"{side}_scale"].shape for side in ("keys", "values")} == {(3, 2, 5, 1)}
        assert [tensors[name].dtype for name in sorted(tensors)] == [torch.int8, torch.float32] * 2
        tensors = {side: tensors[side] * tensors[f"{side}_scale"] for side in ("keys", "values")}
        assert equal(tensors["keys"].unsqueeze(1), Message.from_bytes(data, key).keys)
    else:
        assert equal(tensors["keys"], sent.keys[:, 0].to(FLOATS[dtype]))
        assert equal(tensors["values"], sent.values[:, 0].to(FLOATS[dtype]))
    assert len(tensors) == 2


def test_the_smaller_dtype_makes_the_smaller_message() -> None:
    sent = message(spans=64, head_dim=64)
    numbers = sent.keys.numel() * 2
    widths = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 64}
    for dtype, width in widths.items():
        assert 0 < len(sent.to_bytes(dtype)) - numbers * width < 700  # headers
    assert len(message("float16").to_bytes()) < len(message().to_bytes())


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((3, 1, 2, 5), (3, 1, 2, 5)),
        ((3, 1, 2, 5, 4), (3, 1, 2, 6, 4)),
        ((3, 1, 2, 0, 4), (3, 1, 2, 0, 4)),
        ((2, 1, 2, 5, 4), (2, 1, 2, 5, 4)),
        ((3, 2, 2, 5, 4), (3, 2, 2, 5, 4)),
        ((3, 1, 2, 5, 3), (3, 1, 2, 5, 3)),
    ],
)
def test_tensors_of_another_shape_are_no_message(shape: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match=r"must both be \[3, 1, 2, spans, 4\] with at least one span") as error:
        Message(torch.zeros(shape), torch.zeros(others), origin())
    assert f"keys {shape} and values {others}" in str(error.value)
    assert Message(torch.zeros(3, 1, 2, 6, 4), torch.zeros(3, 1, 2, 6, 4), origin()).spans == 6


@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("float32", "float16")])
def test_tensors_of_another_dtype_are_no_message(dtypes: tuple[str, str]) -> None:
    keys, values = (torch.zeros(3, 1, 2, 5, 4, dtype=getattr(torch, dtype)) for dtype in dtypes)
    with pytest.raises(MessageError, match=f"torch.{dtypes[0]}.*torch.{dtypes[1]}.*float32, bfloat16, float16"):
        Message(keys, values, origin())
    assert Message(keys.float(), values.float(), origin()).keys.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "side", "place", "value"),
    [
        ("float32", "keys", 0, math.nan), ("float16", "values", -1, math.inf), ("bfloat16", "keys", -1, -math.inf),
        ("int8", "values", 0, math.nan),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_not_sent(dtype: str, side: str, place: int, value: float, tmp_path: Path) -> None:
    sent = with_value(value, place, side)
    with pytest.raises(MessageError, match=f"{side}.* not finite in {dtype}"):
        sent.to_bytes(dtype)
    with pytest.raises(MessageError, match=f"{side}.* not finite in {dtype}"):
        sent.save(tmp_path / "new" / "a.message", dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "dtype"), [(65520.0, "float16"), (3.4e38, "bfloat16")])
def test_what_a_dtype_cannot_hold_is_not_sent_in_it(value: float, dtype: str) -> None:
    sent = with_value(value, -1, "values")
    with pytest.raises(MessageError, match=f"values of this message hold values that are not finite in {dtype}"):
        sent.to_bytes(dtype)
    assert same(Message.from_bytes(sent.to_bytes()), sent)


@pytest.mark.parametrize("dtype", ["F32", "int4"])
def test_an_unknown_dtype_is_named(dtype: str, tmp_path: Path) -> None:
    for write in (message().to_bytes, lambda asked: message().save(tmp_path / "a.message", asked)):
        with pytest.raises(SettingError, match=f"dtype='{dtype}' .*float32, bfloat16, float16, int8, or null"):
            write(dtype)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("change", [{"spans": 4}, {"more": 1}])
def test_without_the_right_key_no_header_is_read(change: dict[str, Any]) -> None:
    data = message().to_bytes(key=KEY)
    with refuses("not authenticated by this key"):
        Message.from_bytes(resigned(data, OTHER_KEY, **change), KEY, origin())
    with refuses("not authenticated by this key"):
        Message.from_bytes(resigned(data, **change), KEY, origin())
    with refuses("header|exactly the tensors|another adapter"):
        Message.from_bytes(resigned(data, KEY, **change), KEY, origin())


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
    monkeypatch.setattr(message_module.json, "loads", None)
    for limit in (len(data) - 1, 100, 0):
        with refuses(f"message exceeds max_bytes={limit}"):
            Message.load(tmp_path / "a.message", key, max_bytes=limit)
        with refuses(f"message exceeds max_bytes={limit}"):
            Message.from_bytes(data, key, max_bytes=limit)
    with refuses(f"message exceeds max_bytes={MAX_BYTES}"):
        Message.from_bytes(bytes(MAX_BYTES + 1), key)


@pytest.mark.parametrize("limit", [100])
def test_no_more_of_a_file_is_read_than_may_be(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size >= 0
            read.append(size)
            return bytes(size)

    monkeypatch.setattr(message_module.Path, "open", lambda *_: Endless())
    with refuses(f"exceeds max_bytes={limit}"):
        Message.load(tmp_path / "a.message", max_bytes=limit)
    assert 0 < sum(read) <= limit + 1


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
    with refuses("format=None is unknown; this release reads 1"):
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


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], 10**400, False, "\ud800"])
def test_another_format_is_refused(version: Any) -> None:
    for key in (None, KEY):
        with refuses("format=.{1,40} is unknown; this release reads 1"):
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


@pytest.mark.parametrize(("dtype", "key"), [("float32", None), ("int8", KEY)])
def test_a_damaged_payload_is_refused(dtype: str, key: bytes | None) -> None:
    data = message(spans=1, layers=1, heads=1).to_bytes(dtype, key)
    header, payload = parts(data)
    for place in range(len(data) - len(payload), len(data)):
        with refuses("cut off or damaged: the digest|not authenticated"):
            Message.from_bytes(flipped(data, place), key)
    near = header["sha256"][:-1] + ("1" if header["sha256"][-1] == "0" else "0")
    for other in ("0" * 64, near, hashlib.sha256(payload).hexdigest()):
        with refuses("cut off or damaged: the digest is another"):
            Message.from_bytes(resigned(data, key, sha256=other), key)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in COUNTS), ("spans", "int8"), ("dtype", "float16")])
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


OTHER_TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "none": lambda _: {},
    "no keys": lambda found: {name: tensor for name, tensor in found.items() if name != "keys"},
    "no values": lambda found: {name: tensor for name, tensor in found.items() if name != "values"},
    "one more": lambda found: {**found, "more": torch.ones(1)},
    "other scales": lambda found: {**found, "keys_scale": torch.ones(3, 2, 3, 1, dtype=torch.float16)},
    "scale of all": lambda found: {**found, "values_scale": torch.ones(1)},
    "scale per number": lambda found: {**found, "values_scale": torch.ones(3, 2, 3, 4)},
    "another name": lambda found: {name.replace("keys", "Keys"): tensor for name, tensor in found.items()},
    "another order": lambda found: {**found, "keys": found["keys"].transpose(0, 1).contiguous()},
    "one number": lambda found: {**found, "values": found["values"][:1, :1, :1, :1].contiguous()},
    "no number": lambda found: {**found, "values": found["values"][:0].contiguous()},
    "flat": lambda found: {**found, "values": found["values"].flatten()},
    "as in memory": lambda found: {**found, "keys": found["keys"].unsqueeze(1)},
    "float64": lambda found: {**found, "keys": found["keys"].double()},
    "as many bits": lambda found: {**found, "keys": found["keys"].view(AS_MANY_BITS[found["keys"].dtype])},
    "uint8": lambda found: {**found, "values": found["values"].to(torch.uint8)},
}
AS_MANY_BITS = {
    torch.float32: torch.int32, torch.bfloat16: torch.float16, torch.float16: torch.bfloat16, torch.int8: torch.uint8
}  # fmt: skip


@pytest.mark.parametrize("change", OTHER_TENSORS)
def test_other_tensors_are_refused(change: str) -> None:
    data = message().to_bytes("int8" if "scale" in change else "float32")
    payload = safetensors.torch.save(OTHER_TENSORS[change](safetensors.torch.load(parts(data)[1])))
    for key in (KEY,):
        with refuses("does not hold exactly the tensors of its header"):
            Message.from_bytes(resigned(data, key, payload), key)


@pytest.mark.parametrize("missing", ["keys_scale", "values_scale"])
def test_int8_without_a_scale_is_refused(missing: str) -> None:
    data = message().to_bytes("int8")
    found = safetensors.torch.load(parts(data)[1])
    half = {name: tensor.half() if name == missing else tensor for name, tensor in found.items()}
    flat = {name: tensor.squeeze(-1) if name == missing else tensor for name, tensor in found.items()}
    for tensors in ({name: tensor for name, tensor in found.items() if name != missing}, half, flat):
        with refuses("does not hold exactly the tensors of its header"):
            Message.from_bytes(resigned(data, KEY, safetensors.torch.save(tensors)), KEY)


def test_a_payload_that_is_no_safetensors_is_refused() -> None:
    data = message().to_bytes()
    _, payload = parts(data)
    length = struct.unpack_from("<Q", payload)[0]
    huge = struct.pack("<Q", 2**64 - 1) + payload[8:]
    shape = payload.replace(b"[3,2,3,4]", b"[%d]" % 2**62)
    others = [b"", b"\0", bytes(8), payload[:7], payload[:-1], payload + b"\0", payload[8:], huge, shape, payload[:8]]
    for other in (*others, struct.pack("<Q", length - 1) + payload[8:], payload.replace(b"F32", b"F99")):
        for key in (None, KEY):
            with refuses("payload is no safetensors file|does not hold exactly the tensors"):
                Message.from_bytes(resigned(data, key, other), key)


@pytest.mark.parametrize(
    ("dtype", "side", "place", "value"),
    [
        ("float32", "keys", 0, math.nan), ("float16", "values", -1, math.inf), ("bfloat16", "keys", -1, -math.inf),
        ("int8", "values", 0, math.nan),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_refused(dtype: str, side: str, place: int, value: float) -> None:
    data = message().to_bytes(dtype)
    tensors = safetensors.torch.load(parts(data)[1])
    name = f"{side}_scale" if dtype == "int8" else side
    tensors[name].view(-1)[place] = value
    for key in (None, KEY):
        with refuses(f"^{name} of this message hold values that are not finite"):
            Message.from_bytes(resigned(data, key, safetensors.torch.save(tensors)), key)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_pattern_of_bits_is_told_finite_or_not(dtype: str) -> None:
    """All of 16 bits, and of a float32 the upper 16."""
    numbers = torch.arange(2**16, dtype=torch.int32)
    bits = (numbers << 16) if dtype == "float32" else numbers.to(torch.int16)
    found = bits.view(FLOATS[dtype])
    finite = found[found.isfinite()].view(1, 1, 1, -1, 16)
    sent = Message(finite, finite.flip(3), origin(layers=1, heads=1, head_dim=16))
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    rest = found[~found.isfinite()]
    assert len(finite.view(-1)) + len(rest) == 2**16
    data = message(dtype, 1, layers=1, heads=1, head_dim=1).to_bytes()
    for number in rest[:: 1 if len(rest) < 600 else 7].reshape(-1, 1, 1, 1, 1):
        payload = safetensors.torch.save({"keys": torch.ones_like(number), "values": number})
        with pytest.raises(MessageError, match="values of this message hold values that are not finite"):
            Message.from_bytes(resigned(data, payload=payload))


@pytest.mark.parametrize(("side", "sign"), [("keys", 1), ("values", -1)])
def test_a_scale_that_overflows_when_multiplied_is_refused(side: str, sign: int) -> None:
    data = message().to_bytes("int8")
    tensors = safetensors.torch.load(parts(data)[1])
    tensors[side].fill_(-128)
    largest, scale = torch.finfo(torch.float32).max, tensors[f"{side}_scale"].view(-1)
    scale[-1] = sign * largest / 127.5
    with refuses(f"{side}_scale of this message hold values that are not finite"):
        Message.from_bytes(resigned(data, KEY, safetensors.torch.save(tensors)), KEY)
    scale[-1] = sign * largest / 128.5
    arrived = Message.from_bytes(resigned(data, KEY, safetensors.torch.save(tensors)), KEY)
    assert torch.isfinite(getattr(arrived, side)).all()


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
    for path, why in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "a.message", "Not a directory"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        for given in (path, str(path)):
            with refuses(f"message file {str(path)!r} cannot be read: {why}"):
                Message.load(given, KEY)
    assert os.listdir(tmp_path) == ["file"]


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
