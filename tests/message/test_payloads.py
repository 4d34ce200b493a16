"""Payloads that are not what their header says."""

from __future__ import annotations

import hashlib
import math
import struct
import time
import tracemalloc
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from lcf_lightning import Message
from lcf_lightning.errors import MessageError
from tests.message.making import (
    FLOATS,
    KEY,
    Tensors,
    flipped,
    message,
    origin,
    parts,
    refuses,
    resigned,
    same,
)


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


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("missing", ["keys_scale", "values_scale"])
def test_whole_numbers_without_a_scale_are_refused(dtype: str, missing: str) -> None:
    data = message().to_bytes(dtype)
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
            with refuses(
                "payload is no safetensors file|does not hold exactly the tensors|a table of tensors longer than"
            ):
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


def test_a_table_of_many_tensors_is_refused_before_it_is_parsed() -> None:
    """It cost 12 seconds and 1.7 GB at 64 MiB."""
    rows = ",".join(f'"{place}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for place in range(1_000_000))
    table = f"{{{rows}}}".encode()
    data = resigned(message().to_bytes(), None, payload=len(table).to_bytes(8, "little") + table)
    assert len(data) > 50_000_000
    tracemalloc.start()
    start = time.perf_counter()
    with refuses("message payload has a table of tensors longer than 1024 bytes"):
        Message.from_bytes(data, max_bytes=2**30)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3  # its digest is what takes time, on a busy machine
    assert peak < 2 * len(data)


@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "int4"])
def test_an_honest_table_is_far_below_the_limit(dtype: str) -> None:
    _, payload = parts(message(spans=65_535, layers=1, heads=1).to_bytes(dtype))
    assert int.from_bytes(payload[:8], "little") <= 400
