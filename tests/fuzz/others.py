"""Changed messages and kept prefills: what else is read from files or from a wire."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from lcf_lightning import Message, ModelSpec
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from lcf_lightning.wire import WIRE_DTYPES
from tests import mutations
from tests.fuzz.structures import safetensors_changed
from tests.test_message_fuzz import small

Input = tuple[str, Callable[[], object]]
MUTATIONS = (
    mutations.flip, mutations.delete, mutations.insert, mutations.duplicate, mutations.overwrite, mutations.truncate,
    mutations.splice, mutations.another_length, mutations.swap,
)  # fmt: skip


def messages(_: Path) -> Callable[[Random], Input]:
    """Read without a key, as from whom one trusts; `tests/test_message_fuzz.py` reads them with one, too."""
    sent = [small("float32" if dtype[:3] == "int" else dtype, seed).to_bytes(dtype)
            for seed, dtype in enumerate(WIRE_DTYPES)]  # fmt: skip

    def make(random: Random) -> Input:
        mutation = random.choice(MUTATIONS)
        data = mutations.mutated(sent, mutation, random)
        return mutation.__name__, lambda: Message.from_bytes(data)

    return make


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
