"""Tokens that the sharer has cached, carried to the receiver: what they are, and what is fitted in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings, ModelIdentity
from lcf_lightning.adapter.ridge import best_sources, ridge
from lcf_lightning.adapter.subset import keep_layers, without_closed_layers
from lcf_lightning.errors import SettingError
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import RECEIVER, SHARER, random_kv

SPANS = torch.tensor([[-1, 0, 0, -1, 1], [-1, -1, -1, 0, 1]])


def carrier(same: bool = False, init: dict[str, int] | None = None, **settings: object) -> CacheAdapter:
    """An untrained adapter: of one model with itself, or of the pair that differs in everything."""
    receiver = ModelIdentity("b/receiver", None, RECEIVER)
    sharer = receiver if same else ModelIdentity("a/sharer", "main", SHARER)
    pooler = {"class_path": "carry", "init_args": init or {}}
    torch.manual_seed(0)
    return CacheAdapter(AdapterConfig(sharer, receiver, AdapterSettings(**{"d": 16, "pooler": pooler, **settings})))


def test_of_one_model_the_tokens_of_spans_are_sent_as_they_are_and_then_corrected() -> None:
    adapter, cache = carrier(same=True).eval(), random_kv(5, RECEIVER, 2, 5)
    texts = random_kv(5, RECEIVER, 1, 50, seed=1)
    adapter.pooler.fit(texts, texts)
    sent = adapter.pool(cache, SPANS)
    assert sent.present.tolist() == [[True, True, True], [True, True, False]]
    for side, whole in zip(sent.kv, cache, strict=True):
        assert torch.equal(side[:, 0], whole[:, 0][:, :, [1, 2, 4]])
        assert torch.equal(side[:, 1, :, :2], whole[:, 1][:, :, [3, 4]])
    for tokens, side in zip(adapter(sent, None), sent.kv, strict=True):
        assert torch.equal(tokens, side)  # the start: what is carried is read as it is
    for last in adapter.fuser.last_maps:
        torch.nn.init.normal_(last.weight)
    corrected = adapter(sent, None)
    assert all((one - other).abs().min() > 0 for one, other in zip(corrected, sent.kv, strict=True))
    with torch.no_grad():
        adapter.gates.logits.fill_(-1)
    assert torch.equal(adapter(sent, None).keys, sent.kv.keys)  # a closed gate corrects nothing, and leaves the token


def test_a_correction_is_in_units_of_the_receivers_own_tokens() -> None:
    """A model whose layers differ in scale is corrected alike in all; what never changes there is left alone."""
    adapter, cache = carrier(same=True).eval(), random_kv(5, RECEIVER, 1, 50)
    for last in adapter.fuser.last_maps:
        torch.nn.init.normal_(last.weight)
    scale = torch.tensor([1e-2, 1, 10, 100, 1e3]).view(5, 1, 1, 1, 1)
    scaled = KV(cache.keys * scale + 7 * scale, cache.values * scale)
    scaled.values[:, :, 0, :, 0] = 3.0
    adapter.pooler.fit(scaled, scaled)
    sent = adapter.pool(scaled, torch.zeros(1, 50).long())
    change = (adapter(sent, None).values - sent.kv.values) / scale
    sizes = change.flatten(1).std(1)
    assert sizes.max() / sizes.min() < 3
    assert torch.equal(change[:, :, 0, :, 0], torch.zeros(5, 1, 50))


def test_every_tensor_that_is_trained_learns_and_nothing_else() -> None:
    adapter = carrier()
    mine, theirs = random_kv(3, SHARER, 1, 200), random_kv(5, RECEIVER, 1, 200, seed=1)
    adapter.pooler.fit(mine, theirs)
    fitted = {name: buffer.clone() for name, buffer in adapter.named_buffers()}
    for last in adapter.fuser.last_maps:
        torch.nn.init.normal_(last.weight)
    sent = adapter.pool(random_kv(3, SHARER, 2, 5), SPANS)
    assert sent.kv.keys.shape == (5, 2, 3, 3, 4)  # in the receiver's shape already
    sum(part.square().sum() for part in adapter(sent, None, temperature=1.0)).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1).norm(dim=1) > 0).all(), name
    torch.optim.SGD(adapter.parameters(), 0.1).step()
    assert all(torch.equal(buffer, fitted[name]) for name, buffer in adapter.named_buffers())


def test_a_map_is_that_of_the_layers_that_predict_best(tmp_path: Path) -> None:
    """Planted: each receiver layer is a linear map of two sharer layers, and the map is found, saved and read again."""
    adapter = carrier(init={"sources": 2}).eval()
    assert adapter.pooler.unfitted
    mine = random_kv(3, SHARER, 1, 400)
    planted, generator = [(0, 2), (1, 2), (0, 1), (0, 2), (1, 2)], torch.Generator().manual_seed(3)
    flat = [side.transpose(2, 3).flatten(3)[:, 0] for side in mine]

    def layer(side: torch.Tensor, sources: tuple[int, int]) -> torch.Tensor:
        weights = torch.randn(2 * SHARER.width, RECEIVER.width, generator=generator)
        mapped = torch.cat([side[source] for source in sources], -1) @ weights + 5
        return mapped.view(400, RECEIVER.kv_heads, RECEIVER.head_dim).transpose(0, 1)

    theirs = KV(*(torch.stack([layer(side, chosen) for chosen in planted])[:, None] for side in flat))
    adapter.pooler.fit(mine, theirs)
    assert not adapter.pooler.unfitted
    assert adapter.pooler.sources[:, 0].tolist() == [list(map(float, chosen)) for chosen in planted]
    sent = adapter.pool(mine, torch.zeros(1, 400).long())
    for found, wanted in zip(sent.kv, theirs, strict=True):
        assert (found - wanted).std() < 0.05 * wanted.std()
    adapter.save_pretrained(tmp_path / "adapter")
    again = CacheAdapter.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again.pool(mine, torch.zeros(1, 400).long()).kv.keys, sent.kv.keys)
    counts = adapter.parameter_counts()
    assert counts["closed_form"] == 5 * (2 * 2 + 2 * (1 + 2 * SHARER.width) * RECEIVER.width + 2 * 2 * RECEIVER.width)
    assert counts["pool"] == 0


def test_ridge_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(500, 4, generator=generator) * 3 + 1, torch.randn(500, 2, generator=generator)
    x[:, 3] = 2.0  # says nothing
    y = x[:, :3] @ torch.tensor([[1.0, 0], [0, 2], [-1, 1]]) + 4 + noise / 100
    found = ridge(x, y, penalty=1e-6)
    assert found[4].tolist() == [0, 0]
    torch.testing.assert_close(found[1:4], torch.tensor([[1.0, 0], [0, 2], [-1, 1]]), atol=0.01, rtol=0)
    torch.testing.assert_close(found[0], torch.tensor([4.0, 4]), atol=0.01, rtol=0)
    shrunk = ridge(x, y, penalty=1.0)
    assert shrunk[1:4].norm() < 0.6 * found[1:4].norm()
    assert (shrunk[0] + x.mean(0) @ shrunk[1:] - y.mean(0)).abs().max() < 1e-4  # the mean is not shrunk
    layers = torch.stack([torch.randn(500, 4, generator=generator), x, torch.randn(500, 4, generator=generator)])
    assert best_sources(layers, y[None], 1).tolist() == [[1]]


def test_no_layer_is_left_out() -> None:
    adapter = carrier()
    with torch.no_grad():
        adapter.gates.logits.fill_(-1)
        adapter.gates.logits[2] = 1
    assert without_closed_layers(adapter) is adapter
    with pytest.raises(SettingError, match="fills every layer; none can be left out"):
        keep_layers(adapter, [2])
    with pytest.raises(SettingError, match="layers=\\[1\\] must be null with pooler='carry'"):
        replace(adapter.config, settings=replace(adapter.config.settings, pooler="carry", layers=(1,)))
    with pytest.raises(SettingError, match="sources=4 of pooler=carry must be between 1 and 3"):
        carrier(init={"sources": 4})
