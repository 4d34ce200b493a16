"""Refusing the largest message that is read at all costs 0.3 CPU seconds and twice its size beside it, at most.

    python benchmarks/refusals.py --megabytes 64

Each is refused as late as it can be: the last number is not finite, the digest is another, the key is another, the
table of tensors is as long as the payload, and so on. Exit code 1 where one costs more than that.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import struct
import sys
import time
import tracemalloc
from collections.abc import Iterator

import torch

from lcf_lightning import Message
from lcf_lightning.errors import MessageError
from lcf_lightning.message import MAGIC
from lcf_lightning.origin import Origin

KEY = b"a key of sixteen bytes"
NAN = struct.pack("<f", float("nan"))
SECONDS = 0.3
"""CPU seconds of a refusal, at most."""


def framed(header: dict[str, object], payload: bytes) -> bytes:
    """A message under a right digest, without a tag."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + payload).hexdigest()
    head = json.dumps({**header, "sha256": digest}).encode()
    return MAGIC + bytes(32) + struct.pack("<I", len(head)) + head + payload


def signed(data: bytes) -> bytes:
    return data[:8] + hmac.digest(KEY, MAGIC + data[40:], "sha256") + data[40:]


def hostile(size: int) -> Iterator[tuple[str, bytes, bytes | None]]:
    """What it is, the message, and the key that it is read with."""
    origin = Origin("a" * 32, None, None, 1, 1, 64)
    numbers = torch.zeros(1, 1, 1, (size - 2000) // (2 * 64 * 4), 64)
    whole = Message(numbers, numbers, origin).to_bytes()
    (length,) = struct.unpack_from("<I", whole, 40)
    header, payload = json.loads(whole[44 : 44 + length]), whole[44 + length :]
    del header["sha256"]
    yield "last number not finite", framed(header, payload[:-4] + NAN), None
    yield "another digest", whole[:-1] + b"\1", None
    yield "another key", whole, KEY
    yield "signed, last number not finite", signed(framed(header, payload[:-4] + NAN)), KEY
    rows = ",".join(f'"{place}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for place in range(size // 64))
    table = f"{{{rows}}}".encode()[: size - 2000]
    yield "a table as long as the payload", framed(header, struct.pack("<Q", len(table)) + table), None
    yield "another count of spans", framed(header | {"spans": 3}, payload), None
    yield "nothing but brackets", MAGIC + bytes(32) + struct.pack("<I", 4096) + b"[" * (size - 44), None
    yield "longer than is read", bytes(size + 1), None


def cost(data: bytes, key: bytes | None, size: int) -> tuple[float, int]:
    """CPU seconds and bytes of a refusal."""

    def refuse() -> None:
        try:
            Message.from_bytes(data, key, max_bytes=size)
        except MessageError:
            return
        raise AssertionError("a hostile message was taken")

    started = time.process_time()
    refuse()
    seconds = time.process_time() - started
    tracemalloc.start()
    refuse()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=64)
    size, failed = int(parser.parse_args().megabytes * 2**20), False
    print("| refused | CPU, s | memory / message |\n|---|---:|---:|")
    for name, data, key in hostile(size):
        seconds, peak = cost(data, key, size)
        failed |= seconds > SECONDS or peak > 2 * len(data) + 2**20
        print(f"| {name} | {seconds:.3f} | {peak / len(data):.2f} |")
    sys.exit(failed)


if __name__ == "__main__":
    main()
