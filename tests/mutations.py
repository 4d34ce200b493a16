"""Ways to damage the bytes of a message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from random import Random

from tests.message.making import FRAME


def sections(data: bytes) -> list[slice]:
    """Magic, tag, length, header, and the payload's length, header and numbers; fewer where they are not there."""
    head = FRAME.size + FRAME.unpack_from(data)[2]
    numbers = head + 8 + struct.unpack_from("<Q", data, head)[0]
    ends = (0, 8, 40, 44, head, head + 8, numbers, len(data))
    return [slice(start, end) for start, end in pairwise(ends)]


def span(data: bytes, random: Random, longest: int = 8) -> slice:
    """A few bytes next to each other, of any section as likely as of another."""
    within = random.choice(sections(data))
    start = random.randrange(within.start, within.stop)
    return slice(start, min(start + random.randint(1, longest), len(data)))


def flip(data: bytes, _: bytes, random: Random) -> bytes:
    found = bytearray(data)
    for _bit in range(random.choice((1, 1, 1, 2, 8))):
        found[span(data, random).start] ^= 1 << random.randrange(8)
    return bytes(found)


def delete(data: bytes, _: bytes, random: Random) -> bytes:
    place = span(data, random, random.choice((1, 8, 100)))
    return data[: place.start] + data[place.stop :]


def insert(data: bytes, _: bytes, random: Random) -> bytes:
    place = span(data, random).start
    return data[:place] + random.choice((random.randbytes(random.randint(1, 8)), b" ", b"\n", b"\0")) + data[place:]


def duplicate(data: bytes, _: bytes, random: Random) -> bytes:
    place = span(data, random, random.choice((1, 8, 100)))
    return data[: place.stop] + data[place] + data[place.stop :]


def overwrite(data: bytes, _: bytes, random: Random) -> bytes:
    place = span(data, random)
    return data[: place.start] + random.randbytes(place.stop - place.start) + data[place.stop :]


def truncate(data: bytes, _: bytes, random: Random) -> bytes:
    return data[: span(data, random).start]


def splice(data: bytes, other: bytes, random: Random) -> bytes:
    """The start of one message and the end of another; or a section of another."""
    place = random.choice([span(data, random), *sections(data)])
    if random.random() < 0.5:
        return data[: place.start] + other[place] + data[place.stop :]
    return data[: place.start] + other[random.choice((place, span(other, random))).start :]


def another_length(data: bytes, _: bytes, random: Random) -> bytes:
    length = FRAME.unpack_from(data)[2]
    other = random.choice((length + random.randint(-9, 9), random.randrange(4097), random.randrange(2**32)))
    return data[:40] + struct.pack("<I", other) + data[44:]


def swap(data: bytes, _: bytes, random: Random) -> bytes:
    """Two sections change places."""
    pieces = [data[place] for place in sections(data)]
    one, other = random.sample(range(len(pieces)), 2)
    pieces[one], pieces[other] = pieces[other], pieces[one]
    return b"".join(pieces)


def mutated(sent: list[bytes], mutation: Mutation, random: Random) -> bytes:
    """Nothing that was sent."""
    while (found := mutation(*random.sample(sent, 2), random)) in sent:
        pass
    return found


def without_tag(data: bytes) -> bytes:
    return data[:8] + data[40:]


Mutation = Callable[[bytes, bytes, Random], bytes]
