from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.card import CARD_FILE
from lcf_lightning.adapter.config import GATE_NOISES
from lcf_lightning.adapter.folder import CONFIG_FILE, WEIGHTS_FILE
from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.adapter.parts import PartShape, Summaries
from lcf_lightning.adapter.subset import keep_layers
from lcf_lightning.errors import AdapterFileError, GeometryError, SettingError
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import RECEIVER, SHARER, random_kv, random_summaries

Build = Callable[..., CacheAdapter]


def test_closed_gates_edit_nothing(adapter: Build) -> None:
    """LCF starts at logit 0, which the hard gate reads as off: the identity at initialisation."""
    closed, opened = adapter(gate_init=0.0), adapter(gate_init=1.0)
    message, receiver = random_summaries(5, SHARER, 2, 1), random_kv(5, RECEIVER, 2, 4)
    assert all(tensor.abs().max() == 0 for tensor in closed(message, receiver))
    assert all(tensor.abs().max() > 0.01 for tensor in opened(message, receiver))


def test_gates_switch_keys_and_values_layer_by_layer(adapter: Build) -> None:
    module = adapter()
    message, receiver = random_summaries(5, SHARER, 2, 1), random_kv(5, RECEIVER, 2, 4)
    full = module(message, receiver)
    with torch.no_grad():
        module.gates.logits[1, 0], module.gates.logits[3, 1] = -1.0, -1.0
    partial = module(message, receiver)
    assert partial.keys[1].abs().max() == 0
    assert partial.values[3].abs().max() == 0
    assert torch.equal(partial.values[1], full.values[1])
    assert torch.equal(partial.keys[[0, 2, 3, 4]], full.keys[[0, 2, 3, 4]])


def test_without_a_pooler_the_cache_travels_token_by_token(adapter: Build) -> None:
    module, cache = adapter(pooler=None), random_kv(5, SHARER, 2, 4)
    index = torch.tensor([[0, 1, 1, 3, 3], [2, 2, 2, 3, 3]])
    message = module.pool(cache, index)
    for sent, tensor in zip(message.kv, cache, strict=True):
        for row, places in enumerate(index.tolist()):
            for token, place in enumerate(places):
                assert torch.equal(sent[:, row, :, token], tensor[:, row, :, place])
    assert module(message, random_kv(5, RECEIVER, 2, 5)).keys.shape == (5, 2, 3, 5, 4)
    assert module.parameter_counts()["pool"] == 0


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ([[0, 4], [0, 0]], "between 0 and 3; found 0 … 4"),
        ([[0, -1], [0, 0]], "between 0 and 3; found -1 … 0"),
        ([[0, 1]], r"index \(1, 2\) must be \[batch, receiver tokens\] with a batch of 2"),
    ],
)
def test_an_alignment_that_does_not_fit_is_refused(adapter: Build, index: list[list[int]], match: str) -> None:
    module = adapter(pooler=None)
    with pytest.raises(GeometryError, match=match):
        module.pool(random_kv(5, SHARER, 2, 4), torch.tensor(index))
    with pytest.raises(GeometryError, match="sharer keys have shape"):
        module.pool(random_kv(5, RECEIVER, 2, 4), torch.zeros(2, 4).long())


def test_half_precision_caches_are_computed_in_the_adapters_dtype(adapter: Build) -> None:
    module = adapter()
    message, receiver = random_summaries(5, SHARER, 2, 1), random_kv(5, RECEIVER, 2, 4)
    half = module(
        Summaries(KV(*(t.bfloat16() for t in message.kv)), message.present), KV(*(t.bfloat16() for t in receiver))
    )
    assert half.keys.dtype == torch.float32
    torch.testing.assert_close(half.keys, module(message, receiver).keys, atol=0.05, rtol=0.05)


def test_wrong_shapes_are_refused(adapter: Build) -> None:
    module = adapter()
    message, receiver = random_summaries(5, SHARER, 2, 1), random_kv(5, RECEIVER, 2, 4)
    with pytest.raises(GeometryError, match=r"message keys have shape .*; expected \[5, batch, 2, tokens, 8\]"):
        module(random_summaries(4, SHARER, 2, 1), receiver)
    with pytest.raises(GeometryError, match="receiver keys have shape"):
        module(message, random_kv(5, SHARER, 2, 4))
    with pytest.raises(GeometryError, match="message of 3 examples × 1 tokens does not fit a receiver cache of 2 × 4"):
        module(random_summaries(5, SHARER, 3, 1), receiver)
    with pytest.raises(GeometryError, match="message of 2 examples × 3 tokens"):
        module(random_summaries(5, SHARER, 2, 3), receiver)
    with pytest.raises(GeometryError, match="differ in shape"):
        module(Summaries(KV(message.kv.keys, message.kv.values[:, :1]), message.present), receiver)


@pytest.mark.parametrize(
    "settings", [{}, {"pooler": None}, {"fuser": "c2c"}, {"layers": (1, 3)}, {"pooler": "prefix", "fuser": "c2c"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_give_the_same_edit(
    adapter: Build, tmp_path: Path, settings: dict[str, object], dtype: torch.dtype
) -> None:
    module = adapter(**settings).to(dtype)
    module.save_pretrained(tmp_path / "adapter", {"steps": 3})
    restored = CacheAdapter.from_pretrained(tmp_path / "adapter")
    layers = len(module.config.receiver_layers)
    message = random_summaries(layers, SHARER, 2, 1)
    receiver = None if module.prepends else random_kv(layers, RECEIVER, 2, 4)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
    )
    assert restored.config.metadata == {"steps": 3}
    assert restored.gates.logits.dtype == dtype
    assert not restored.training
    for ours, theirs in zip(restored(message, receiver), module(message, receiver), strict=True):
        assert torch.equal(ours, theirs)


def test_saving_again_replaces_the_folder(adapter: Build, tmp_path: Path) -> None:
    module = adapter()
    module.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        module.gates.logits.fill_(7.0)
    module.save_pretrained(tmp_path / "adapter")
    assert CacheAdapter.from_pretrained(tmp_path / "adapter").gates.logits.unique().tolist() == [7.0]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_save_leaves_the_old_adapter(adapter: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter().save_pretrained(tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lcf_lightning.adapter.folder.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        adapter(gate_init=3.0).save_pretrained(tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.fixture
def saved(adapter: Build, tmp_path: Path) -> Path:
    adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterFileError, match=f"has no {name}; both files of an adapter are needed"):
        CacheAdapter.from_pretrained(saved)
    with pytest.raises(AdapterFileError, match="nowhere"):
        CacheAdapter.from_pretrained(saved / "nowhere")


def test_missing_extra_and_misshapen_tensors_are_named(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    logits = tensors.pop("gates.logits")
    save_file(tensors, saved / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match=r"missing tensors \['gates.logits'\], unexpected tensors \[\]"):
        CacheAdapter.from_pretrained(saved)
    save_file({**tensors, "gates.logits": logits, "lora.A": logits.clone()}, saved / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match=r"missing tensors \[\], unexpected tensors \['lora.A'\]"):
        CacheAdapter.from_pretrained(saved)
    save_file({**tensors, "gates.logits": logits[1:].clone()}, saved / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match=r"gates.logits has shape \(4, 2\), expected \(5, 2\)"):
        CacheAdapter.from_pretrained(saved)
    save_file({**tensors, "gates.logits": logits.long()}, saved / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match="must share one float dtype"):
        CacheAdapter.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    assert len(content) > keep
    (saved / WEIGHTS_FILE).write_bytes(content[:keep])
    with pytest.raises(AdapterFileError, match="is damaged or no safetensors file"):
        CacheAdapter.from_pretrained(saved)


def test_a_damaged_or_foreign_config_is_refused(saved: Path) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(AdapterFileError, match="format_version=99 is unknown; this release reads version 1"):
        CacheAdapter.from_pretrained(saved)
    (saved / CONFIG_FILE).write_text(json.dumps(config)[:40])
    with pytest.raises(AdapterFileError, match="lcf_config.json is damaged"):
        CacheAdapter.from_pretrained(saved)
    other = {**config, "settings": {**config["settings"], "d": 32}}
    (saved / CONFIG_FILE).write_text(json.dumps(other))
    with pytest.raises(AdapterFileError, match="has shape"):
        CacheAdapter.from_pretrained(saved)


def test_a_fingerprint_covers_what_a_message_means(adapter: Callable[..., CacheAdapter], tmp_path: Path) -> None:
    whole = adapter()
    whole.save_pretrained(tmp_path / "adapter", {"steps": 3})
    elsewhere = adapter()
    elsewhere.config = replace(whole.config, sharer=replace(whole.config.sharer, path="/another/place"))
    same = [whole, CacheAdapter.from_pretrained(tmp_path / "adapter"), elsewhere]
    moved = adapter()
    with torch.no_grad():
        moved.pooler.base_query[0, 0, 0] += 1e-6
    others = [moved, adapter().half(), adapter(layer_map="proportional"), keep_layers(whole, (1, 2))]
    assert len({each.fingerprint() for each in same}) == 1
    assert len({each.fingerprint() for each in [whole, *others]}) == 5


def test_a_fingerprint_is_what_earlier_releases_found(adapter: Callable[..., CacheAdapter]) -> None:
    """Or messages of an older sharer would be refused. `gate_noise` and `norm_eps` are younger."""
    for noise in GATE_NOISES:
        module = adapter(gate_noise=noise, norm_eps=None)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.5)
        assert module.gates.noise == noise
        assert module.fingerprint() == "8bfb3fabe839c5927543391ed926d061"


def test_where_both_read_the_same_text_aligned_tokens_are_sent(adapter: Callable[..., CacheAdapter]) -> None:
    shared, cache = adapter(pooler=None), random_kv(5, SHARER, 1, 4)
    sent = shared.summarise(cache, torch.tensor([[3, 0, 0]]))
    assert torch.equal(sent.kv.keys, cache.keys[:, :, :, [3, 0, 0]])
    assert torch.equal(shared.merge(sent).kv.keys, sent.kv.keys)
    with pytest.raises(GeometryError, match="message keys have shape"):
        adapter().merge(random_summaries(5, RECEIVER, 1, 4))


def test_a_prefix_counts_the_parameters_of_the_formula(adapter: Build) -> None:
    ours, theirs = adapter(pooler="prefix"), adapter(pooler="span")
    inputs = 2 * RECEIVER.width * 16  # what the receiver's cache would be read with, at d=16
    assert ours.parameter_counts()["per_layer"] == theirs.parameter_counts()["per_layer"] - inputs
    assert ours.parameter_counts()["pool"] == 5 * 4 * 2**2 * 8
    assert ours.parameter_counts()["total"] < theirs.parameter_counts()["total"]


@pytest.mark.parametrize("fuser", ["lcf", "c2c"])
def test_a_prefix_writes_a_token_a_span_and_every_tensor_learns(adapter: Build, fuser: str) -> None:
    module = adapter(pooler="prefix", fuser=fuser)
    sent = module.pool(random_kv(5, SHARER, 2, 4), torch.tensor([[0, 0, 1, 2], [-1, 0, 0, 1]]))
    tokens = module(sent, None, temperature=1.0)
    assert [tuple(tensor.shape) for tensor in tokens] == [(5, 2, 3, 3, 4)] * 2
    sum(tensor[:, row, :, : 3 - row].square().sum() for tensor in tokens for row in (0, 1)).backward()  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad.flatten(1).norm(dim=1) > 0).all(), name


def test_tensors_of_several_dtypes_are_no_adapter(adapter: Build, tmp_path: Path) -> None:
    adapter().save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    tensors["gates.logits"] = tensors["gates.logits"].half()
    save_file(tensors, tmp_path / "adapter" / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match="tensors must share one float dtype, found .*F16.*F32"):
        CacheAdapter.from_pretrained(tmp_path / "adapter")
    save_file({name: tensor.long() for name, tensor in tensors.items()}, tmp_path / "adapter" / WEIGHTS_FILE)
    with pytest.raises(AdapterFileError, match=r"tensors must share one float dtype, found \['I64'\]"):
        CacheAdapter.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("part", [None, 3, ["lcf"], True, {"class_path": 3}, {"class_path": "lcf", "init_args": [1]}])
def test_a_part_of_another_kind_is_refused(adapter: Build, tmp_path: Path, part: object) -> None:
    adapter().save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / CONFIG_FILE
    config = json.loads(file.read_text())
    config["settings"]["fuser"] = part
    file.write_text(json.dumps(config))
    refusal = "a part must be a name, or class_path and init_args|fuser=.* must be text or a table"
    with pytest.raises(AdapterFileError, match=refusal):
        CacheAdapter.from_pretrained(tmp_path / "adapter")


class Shared(LCFFuser):
    """One parameter for all layers."""

    def __init__(self, shape: PartShape, needed: int) -> None:
        super().__init__(shape)
        self.one = torch.nn.Parameter(torch.zeros(needed))


def test_a_part_that_cannot_be_built_is_named(adapter: Build) -> None:
    path = f"{__name__}.Shared"
    with pytest.raises(SettingError, match="init_args of fuser='tests.adapter.test_adapter.Shared': .*'needed'"):
        adapter(fuser=path)
    with pytest.raises(SettingError, match=r"the first dimension of one \(3,\) must count the 5 edited layers"):
        adapter(fuser={"class_path": path, "init_args": {"needed": 3}})
    assert adapter(fuser={"class_path": path, "init_args": {"needed": 5}}).parameter_counts()["total"] > 0
