"""Ways to change JSON-like data and the files that hold it, so that most of it stays what it was."""

from __future__ import annotations

import json
import struct
from copy import deepcopy
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**16, 2**31, 2**40, 2**63, 2**64, 10**30, -(2**63), 0.0, 0.5, -1.5, 1e308,
    float("nan"), float("inf"), "", " ", "x", "lcf", "c2c", "span", "prefix", "carry", "float16", "F16", "F8_E4M3",
    "\0", "../..", "/", "{}", "{0}", "ä" * 300, "\ud800", [], {}, [[]], [None], [0, 0], [-1], [2**62, 2**62],
    {"class_path": "carry", "init_args": {"sources": 2**40}}, {"class_path": "os.system", "init_args": {"a": "x"}},
)  # fmt: skip
"""What a field may be told to be."""


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    found, left = [], [value]
    while left:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        left += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found


def another(value: Any, random: Random) -> Any:
    """Something else in the place of ``value``: near it, or nothing like it."""
    near: list[Any] = [str(value), [value], {"x": value}]
    if isinstance(value, int | float) and not abs(value) > 10**300:
        near += [value + 1, value - 1, -value, value * 2, value * 1000, value + 0.5, value * 10**8]
    if isinstance(value, str):
        near += [value[:-1], value + "x", value.upper(), value * 2, value[::-1]]
    if isinstance(value, list):
        near += [value[:-1], value[::-1], value * 2, [*value, 0], value * 5000]
    if random.random() < 0.01:
        return random.choice((deep(40), deep(200), list(range(100_000)), 10**4000, "x" * 10**6))
    return random.choice(near) if random.random() < 0.5 else any_value(random)


def any_value(random: Random) -> Any:
    """One of `VALUES`, for the caller to change."""
    return deepcopy(random.choice(VALUES))


def changed(data: Any, random: Random) -> Any:
    """A copy of ``data`` with one to three edits: a field of another value, gone, renamed, new, or two exchanged."""
    copy = deepcopy(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = places(copy)
        if not found:
            return copy
        (container, key), (other, place) = random.choice(found), random.choice(found)
        kind = random.choice(("value", "value", "value", "value", "gone", "new", "exchanged"))
        if kind == "value":
            container[key] = another(container[key], random)
        elif kind == "gone":
            del container[key]
        elif kind == "exchanged":
            container[key] = deepcopy(other[place])
        elif isinstance(container, dict):
            name = random.choice((f"{key}s", "novel", "", "\0")) if isinstance(key, str) else -1
            container[name] = container.pop(key) if random.random() < 0.5 else any_value(random)
        else:
            container.insert(key, any_value(random))
    return copy


def bytes_changed(data: bytes, random: Random) -> bytes:
    """Flipped bits, bytes gone, cut, new, or of another place."""
    if not data:
        return random.randbytes(random.randint(1, 64))
    here, length = random.randrange(len(data)), random.choice((1, 4, 100))
    kind = random.randrange(6)
    if kind == 0:
        found = bytearray(data)
        for _ in range(random.choice((1, 1, 1, 8))):
            found[random.randrange(len(found))] ^= 1 << random.randrange(8)
        return bytes(found)
    if kind == 1:
        return data[:here]
    if kind == 2:
        return data[:here] + data[here + length :]
    if kind == 3:
        return data[:here] + random.randbytes(length) + data[here:]
    if kind == 4:
        return data[:here] + random.randbytes(length) + data[here + length :]
    there = random.randrange(len(data))
    return data[:here] + data[there : there + length] + data[here + length :]


def json_changed(text: bytes, random: Random) -> bytes:
    """A JSON file of other content, most times; else of other bytes."""
    if random.random() < 0.15:
        return bytes_changed(text, random)
    found = json.dumps(changed(json.loads(text), random)).encode()
    if random.random() < 0.02:
        levels = random.choice((500, 990, 5000, 100_000))
        return found.replace(b"null", b"[" * levels + b"]" * levels, 1)
    return found


def safetensors_changed(data: bytes, random: Random) -> bytes:
    """A safetensors file with another table of tensors, most times; else of other bytes, table or numbers."""
    length = struct.unpack_from("<Q", data)[0]
    table, numbers = data[8 : 8 + length], data[8 + length :]
    kind = random.random()
    if kind < 0.6:
        head = json_changed(table, random)
        return struct.pack("<Q", len(head)) + head + numbers
    if kind < 0.7:
        return struct.pack("<Q", random.choice((0, 1, length - 1, length + 8, 2**31, 2**63))) + data[8:]
    if kind < 0.85:
        return data[: 8 + length] + bytes_changed(numbers, random)
    return bytes_changed(data, random)
