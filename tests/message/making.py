"""Messages, well-made and not, for the tests of what is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lcf_lightning import Message
from lcf_lightning.errors import MessageError
from lcf_lightning.origin import Origin

Tensors = dict[str, Tensor]
MAGIC = b"LCFMSG\r\n"
FRAME = struct.Struct("<8s32sI")  # magic, tag, length of the header
KEY, OTHER_KEY = b"sixteen bytes...", b"sixteen others.."
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIRE_DTYPES = (*FLOATS, "int8", "int4")
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
    says = [(each.origin, each.pooled, each.prompt, each.binding) for each in (one, other)]
    return says[0] == says[1] and equal(one.keys, other.keys) and equal(one.values, other.values)


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
            patch.setattr(torch, maker, made)
        with pytest.raises(MessageError, match=match):
            yield
