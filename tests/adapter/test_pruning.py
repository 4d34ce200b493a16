from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.folder import WEIGHTS_FILE
from lcf_lightning.adapter.subset import keep_layers, open_layers, without_closed_layers
from lcf_lightning.errors import SettingError
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import RECEIVER, SHARER, random_kv, random_summaries

Build = Callable[..., CacheAdapter]


@pytest.mark.parametrize(
    "settings",
    [
        {"pooler": None},
        {"pooler": None, "fuser": "c2c"},
        {},
        {"pooler": "prefix"},
        {"pooler": "prefix", "fuser": "c2c"},
    ],
    ids=["lcf", "c2c", "x", "prefix", "prefix-c2c"],
)
@pytest.mark.parametrize("kept", [(2,), (0, 3), (0, 1, 2, 3, 4)])
@torch.no_grad()
def test_a_pruned_adapter_is_the_full_one_with_the_other_gates_closed(
    adapter: Build, settings: dict[str, object], kept: tuple[int, ...]
) -> None:
    full, receiver = adapter(**settings), random_kv(5, RECEIVER, 2, 4, seed=2)
    full.gates.logits[3, 0] = -1.0  # in a kept layer one gate may be closed
    pruned = keep_layers(full, kept)
    for layer in set(range(5)) - set(kept):
        full.gates.logits[layer] = -1.0
    cache, index = random_kv(5, SHARER, 2, 4, seed=1), torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])
    whole = full(full.pool(cache, index), None if full.prepends else receiver)
    own = None if full.prepends else KV(*(tensor[list(kept)] for tensor in receiver))
    fewer = pruned(pruned.pool(KV(*(tensor[list(kept)] for tensor in cache)), index), own)
    for ours, theirs in zip(fewer, whole, strict=True):
        assert torch.equal(ours, theirs[list(kept)])
        assert not theirs[[layer for layer in range(5) if layer not in kept]].any()
        assert ours.abs().max() > 0.01


def test_the_file_holds_only_the_kept_layers(adapter: Build, tmp_path: Path) -> None:
    full = adapter(pooler=None)
    keep_layers(full, [3, 1]).save_pretrained(tmp_path / "pruned")
    full.save_pretrained(tmp_path / "full")
    restored = CacheAdapter.from_pretrained(tmp_path / "pruned")
    assert restored.config.receiver_layers == (1, 3)
    assert restored.config.sharer_layers == tuple(full.config.sharer_layers[layer] for layer in (1, 3))
    tensors = load_file(tmp_path / "pruned" / WEIGHTS_FILE)
    assert {len(tensor) for tensor in tensors.values()} == {2}
    counts = full.parameter_counts()["total"], restored.parameter_counts()["total"]
    assert counts[1] * 5 == counts[0] * 2
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("pruned", "full")]
    assert sizes[0] < sizes[1] * 0.45


def test_pruning_twice_and_leaving_the_full_one_alone(adapter: Build) -> None:
    full = adapter()
    before = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    twice = keep_layers(keep_layers(full, [0, 2, 4]), [4])
    assert twice.config.receiver_layers == (4,)
    with torch.no_grad():
        twice.gates.logits.fill_(9.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in full.state_dict().items())
    with pytest.raises(SettingError, match=r"layers=\[1\] must be one or more of \[0, 2, 4\]"):
        keep_layers(keep_layers(full, [0, 2, 4]), [1])
    with pytest.raises(SettingError, match=r"layers=\[\] must be one or more of \[0, 1, 2, 3, 4\]"):
        keep_layers(full, [])


@torch.no_grad()
def test_closed_layers_are_taken_out_for_use(adapter: Build) -> None:
    module = adapter(pooler=None)
    assert without_closed_layers(module) is module
    module.gates.logits[1] = -1.0
    assert without_closed_layers(module).config.receiver_layers == (0, 2, 3, 4)
    module.gates.logits.fill_(-1.0)
    assert without_closed_layers(module) is module  # an adapter has at least one layer
    assert not any(t.any() for t in module(random_summaries(5, SHARER, 1, 3), random_kv(5, RECEIVER, 1, 3)))


@torch.no_grad()
def test_a_layer_is_open_if_either_of_its_gates_is(adapter: Build) -> None:
    module = adapter(layers=(1, 2, 4))
    module.gates.logits.copy_(torch.tensor([[1.0, -1.0], [0.0, -2.0], [-1.0, 0.1]]))
    assert open_layers(module) == (1, 4)
    module.gates.logits.fill_(0.0)
    assert open_layers(module) == ()


def test_a_pruned_adapter_can_be_pruned_again(adapter: Build) -> None:
    """Its layers are named by the receiver's, wherever their tensors stand."""
    full = adapter()
    twice, once = keep_layers(keep_layers(full, [1, 2, 4]), [2, 4]), keep_layers(full, [2, 4])
    assert twice.config == once.config
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())
