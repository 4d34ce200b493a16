"""What arrives is a message that was sent, or it is refused: never anything else, never another error.

`python -m tests.test_message_fuzz` prints what was tried and what became of it.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcf_lightning import Message
from lcf_lightning.binding import Binding
from lcf_lightning.errors import MessageError
from lcf_lightning.origin import Origin
from tests.message.making import FLOATS, FRAME, KEY, MAGIC, WIRE_DTYPES, digest, framed, message, parts, same
from tests.mutations import (
    Mutation,
    another_length,
    delete,
    duplicate,
    flip,
    insert,
    mutated,
    overwrite,
    splice,
    swap,
    truncate,
    without_tag,
)

SMALL = {"layers": 1, "heads": 1, "head_dim": 2}
GUARDS = ("key", "origin", "nothing")
PLANNED = {
    "arbitrary bytes": 400,
    "arbitrary headers": 800,
    "arbitrary payloads": 800,
    **{f"{dtype}, read with {guard}": 2000 for dtype in WIRE_DTYPES for guard in GUARDS},
    **{f"{dtype}, digest of the attacker": 2000 for dtype in WIRE_DTYPES},
}
TALLY: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by kind of input
COLUMNS = ("inputs", "refused", "equal", "another", "crashes", "bytes let through")


def small(dtype: str, seed: int = 0) -> Message:
    return message(dtype if dtype in FLOATS else "float32", 2, seed, prompt=f"e{seed}" * 16, **SMALL)


def shared(one: bytes, other: bytes) -> int:
    """Length of their common start."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def let_through(data: bytes, sent: list[bytes]) -> int:
    """In how many bytes, from the first to the last, this differs from what was sent."""
    least = len(data)
    for other in sent:
        start = shared(data, other)
        end = shared(data[start:][::-1], other[start:][::-1])
        least = min(least, max(len(data), len(other)) - start - end)
    return least


def well_formed(found: Message) -> bool:
    """Finite, and what its origin says."""
    whose = found.origin
    shape = (whose.layers, 1, whose.heads, found.spans, whose.head_dim)
    return all(
        each.shape == shape and each.dtype in FLOATS.values() and bool(torch.isfinite(each).all())
        for each in (found.keys, found.values)
    )


def tried(kind: str, data: bytes, sent: list[bytes], key: bytes | None = None, origin: Origin | None = None) -> str:
    """What becomes of an input: refused, equal to something sent, another message, or none of these: a crash.

    Returns:
        The column that it counts in.
    """
    row, column = TALLY[kind], "crashes"
    row["inputs"] += 1
    try:
        found = Message.from_bytes(data, key, origin)
        assert well_formed(found)
        column = "equal" if any(same(found, Message.from_bytes(each)) for each in sent) else "another"
        row["bytes let through"] += let_through(data, sent)
    except MessageError:
        column = "refused"
    finally:
        row[column] += 1
    return column


def checked(kind: str) -> Counter[str]:
    """Its row, if as much was tried as planned and nothing else came of it."""
    row = TALLY[kind]
    assert row["inputs"] >= PLANNED[kind]
    assert row["inputs"] == row["refused"] + row["equal"] + row["another"]
    return row


def hypothesised(kind: str, tries: Callable[[Any], None], strategy: st.SearchStrategy[Any]) -> Counter[str]:
    once = settings(max_examples=PLANNED[kind], deadline=None, database=None, derandomize=True)(given(strategy)(tries))
    once()
    return checked(kind)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WIRE_DTYPES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
field_values = json_values | st.integers(0, 3) | st.integers(2**20 - 1, 2**20 + 1) | st.sampled_from(["a" * 32])


def test_arbitrary_bytes_are_refused() -> None:
    kind, start = "arbitrary bytes", small("float32").to_bytes()

    def tries(data: bytes) -> None:
        tried(kind, data, [start])
        tried(kind, data, [start], KEY)

    begun = st.integers(0, len(start) - 1).map(lambda length: start[:length])
    strategy = st.binary(max_size=80) | st.binary().map(MAGIC.__add__) | st.builds(bytes.__add__, begun, st.binary())
    row = hypothesised(kind, tries, strategy)
    assert row["refused"] == row["inputs"]
    assert row["bytes let through"] == 0


def test_arbitrary_headers_are_refused_or_right() -> None:
    kind, binding = "arbitrary headers", Binding("bob", None, 2**31, "b0" * 16)
    sent = {dtype: replace(small(dtype), binding=binding).to_bytes(dtype) for dtype in WIRE_DTYPES}
    fields = [*parts(sent["int8"])[0], "more"]

    def tries(drawn: tuple[str, Any, set[str], Any, bytes | None]) -> None:
        dtype, changed, dropped, whole, key = drawn
        header, payload = parts(sent[dtype])
        header = {name: value for name, value in {**header, **changed}.items() if name not in dropped}
        if "sha256" in header.keys() - changed.keys():
            header["sha256"] = digest(header, payload)
        head = json.dumps(header if whole is None else whole).encode()
        tried(kind, framed(head, payload, key), [sent[dtype]], key)

    changes = st.dictionaries(st.sampled_from(fields), field_values, max_size=2)
    dropped = st.sets(st.sampled_from(fields), max_size=1)
    whole = st.none() | st.none() | json_values
    strategy = st.tuples(st.sampled_from(WIRE_DTYPES), changes, dropped, whole, st.sampled_from([None, KEY]))
    row = hypothesised(kind, tries, strategy)
    assert row["refused"] > row["inputs"] / 2
    assert row["equal"] > 0  # without the "more" that was dropped
    assert row["another"] > 0  # an attacker without a key may write any recipient and session


def packed(header: Any, data: bytes) -> bytes:
    """As safetensors packs it, whatever it is."""
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


entries = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "F64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x"]),
    "shape": st.lists(st.integers(0, 4) | st.sampled_from([-1, 2**31, 2**63, 2**64]), max_size=5),
    "data_offsets": st.lists(st.integers(0, 40) | st.integers(), min_size=2, max_size=2),
})  # fmt: skip
names = st.sampled_from(["keys", "values", "keys_scale", "values_scale", "__metadata__", ""])


def test_arbitrary_payloads_are_refused_or_finite() -> None:
    """Of the attacker's own digest: safetensors of any tensors, and those of the header with any numbers."""
    kind, sent = "arbitrary payloads", {dtype: small(dtype).to_bytes(dtype) for dtype in WIRE_DTYPES}

    def tries(drawn: tuple[str, Any, bytes, bytes | None]) -> None:
        dtype, header, data, key = drawn
        fields, payload = parts(sent[dtype])
        length = struct.unpack_from("<Q", payload)[0]
        own = json.loads(payload[8 : 8 + length])
        data = data.ljust(len(payload) - 8 - length, b"\x3e") if header is None else data
        payload = packed(own if header is None else {**own, **header} if isinstance(header, dict) else header, data)
        head = json.dumps({**fields, "sha256": digest(fields, payload)}).encode()
        tried(kind, framed(head, payload, key), [sent[dtype]], key)

    headers = st.none() | st.dictionaries(names, entries | json_values, max_size=3) | json_values
    numbers = st.binary(max_size=48) | st.lists(st.sampled_from([b"\0", b"\x7f", b"\xff", b"\x80"])).map(b"".join)
    row = hypothesised(
        kind, tries, st.tuples(st.sampled_from(WIRE_DTYPES), headers, numbers, st.sampled_from([None, KEY]))
    )
    assert row["refused"] > row["inputs"] / 3
    assert row["another"] > 20


MUTATIONS: list[Mutation] = [flip, flip, delete, insert, duplicate, overwrite, truncate, splice, another_length, swap]


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_mutations_are_refused_or_change_nothing(dtype: str, guard: str) -> None:
    kind, random, key = f"{dtype}, read with {guard}", Random(0), KEY if guard == "key" else None
    whose = small(dtype).origin if guard == "origin" else None
    sent = [small(dtype, seed).to_bytes(dtype, key) for seed in range(3)]
    for number in range(PLANNED[kind]):
        data = mutated(sent, MUTATIONS[number % len(MUTATIONS)], random)
        column = tried(kind, data, sent, key, whose)
        assert column == "refused" or guard != "key"
        assert column != "equal" or without_tag(data) in map(without_tag, sent)
    row = checked(kind)
    assert row["refused"] > 0.8 * row["inputs"]
    assert row["another"] == 0
    assert (row["equal"] > 0) == (guard != "key")


def forged(sent: list[bytes], mutation: Mutation, random: Random) -> bytes:
    """A mutation of header or payload with a digest and a length that fit it."""
    data = mutated(sent, mutation, random)
    head = max(FRAME.size, min(len(data), FRAME.size + FRAME.unpack_from(sent[0])[2] + random.choice((0, 0, 0, 1, -1))))
    header, payload = data[FRAME.size : head], data[head:]
    with suppress(ValueError, TypeError):  # a header that is one
        fields = json.loads(header)
        header = json.dumps({**fields, "sha256": digest(fields, payload)}).encode()
    return framed(header, payload)


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_what_passes_with_a_digest_of_the_attacker_is_a_message(dtype: str) -> None:
    kind, random = f"{dtype}, digest of the attacker", Random(0)
    sent = [small(dtype, seed).to_bytes(dtype) for seed in range(3)]
    for number in range(PLANNED[kind]):
        tried(kind, forged(sent, MUTATIONS[number % len(MUTATIONS)], random), sent)
    row = checked(kind)
    assert row["another"] > 0.02 * row["inputs"]
    assert row["refused"] > 0.2 * row["inputs"]


def test_ten_thousand_inputs_are_planned() -> None:
    assert sum(PLANNED.values()) >= 10_000
    assert min(PLANNED.values()) > 0


def table() -> str:
    """What was tried, and what became of it."""
    rows = {**TALLY, "all": sum(TALLY.values(), Counter())}
    lines = ["| input | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {kind} | " + " | ".join(f"{row[name]:,}" for name in COLUMNS) + " |" for kind, row in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    try:
        test_arbitrary_bytes_are_refused()
        test_arbitrary_headers_are_refused_or_right()
        test_arbitrary_payloads_are_refused_or_finite()
        for dtype in WIRE_DTYPES:
            for guard in GUARDS:
                test_mutations_are_refused_or_change_nothing(dtype, guard)
            test_what_passes_with_a_digest_of_the_attacker_is_a_message(dtype)
    finally:
        sys.stdout.write(table())


if __name__ == "__main__":
    main()
