"""Changed messages and kept prefills: what else is read from files or from a wire."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from lcf_lightning import Message, ModelSpec
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from lcf_lightning.origin import Origin
from lcf_lightning.wire import WIRE_DTYPES
from tests import mutations
from tests.fuzz.structures import changed, safetensors_changed
from tests.message.making import KEY, digest, framed, parts
from tests.test_message_fuzz import small, well_formed

Input = tuple[str, Callable[[], object]]
MUTATIONS = (
    mutations.flip, mutations.delete, mutations.insert, mutations.duplicate, mutations.overwrite, mutations.truncate,
    mutations.splice, mutations.another_length, mutations.swap,
)  # fmt: skip


def messages(_: Path) -> Callable[[Random], Input]:
    """Read with a key, for an adapter, or from whom one trusts; some of an attacker who has the key or needs none."""
    sent = [small("float32" if dtype[:3] == "int" else dtype, seed).to_bytes(dtype)
            for seed, dtype in enumerate(WIRE_DTYPES)]  # fmt: skip
    signed, whose = Message.from_bytes(sent[0]).to_bytes(key=KEY), small("float32").origin

    def make(random: Random) -> Input:
        kind = random.choice(("bytes", "bytes", "signed", "header", "payload"))
        key = KEY if kind == "signed" or random.random() < 0.3 else None
        if kind in ("header", "payload"):
            data = _forged(random.choice(sent), kind, key, random)
        else:
            mutation = random.choice(MUTATIONS)
            data = mutations.mutated([signed, *sent] if kind == "signed" else sent, mutation, random)
        return kind, lambda: _read(data, key, random.choice((None, whose)))

    return make


def _forged(data: bytes, kind: str, key: bytes | None, random: Random) -> bytes:
    """A message whose header or payload is another, under a right digest and, with ``key``, a right tag."""
    header, payload = parts(data)
    if kind == "payload":
        payload = safetensors_changed(payload, random)
        return framed(json.dumps({**header, "sha256": digest(header, payload)}).encode(), payload, key)
    found: Any = changed({name: value for name, value in header.items() if name != "sha256"}, random)
    head = json.dumps({**found, "sha256": digest(found, payload)} if isinstance(found, dict) else found).encode()
    return framed(head[: 2**20], payload, key)


def _read(data: bytes, key: bytes | None, origin: Origin | None) -> None:
    found = Message.from_bytes(data, key, origin)
    assert well_formed(found)
    again = Message.from_bytes(found.to_bytes(key=KEY), KEY, found.origin)
    assert torch.equal(again.keys, found.keys)
    assert torch.equal(again.values, found.values)


def prefills(folder: Path) -> Callable[[Random], Input]:
    """Whatever becomes of a kept prefill, what is read is what the model gives."""
    store = PrefillStore(PrefillSettings(str(folder / "prefills")), load_frozen(ModelSpec("tiny-sharer")))
    ids = torch.arange(3, 9).unsqueeze(0)
    right = store.read(ids, torch.ones_like(ids).bool())
    (file,) = (folder / "prefills").rglob("*.safetensors")
    content = file.read_bytes()

    def read() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.read(ids, torch.ones_like(ids).bool())
        assert all(map(torch.equal, (*found.keys, *found.values), (*right.keys, *right.values)))

    def make(random: Random) -> Input:
        file.write_bytes(safetensors_changed(content, random))
        return "kept prefill", read

    return make
