"""A pair whose message is the sharer's own tokens (pooler=carry): from a fit to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport, LastCheckpoint
from torch.utils.data import DataLoader

from lcf_lightning import Channel, Message
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.tokens import pad_left
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.fitting import fit_pooler
from lcf_lightning.models.store import PrefillSettings
from tests.data.conftest import Listed
from tests.pairs import channel_of, prefills_counted, small_data, small_module, small_trainer
from tests.prefix.conftest import FACTS, Spec, fused

SETTINGS = {"pooler": "carry", "gate_noise": "none", "dropout": 0.0}


@torch.no_grad()
def test_of_one_model_the_receiver_reads_on_as_if_it_had_read_the_text_first(spec: Spec) -> None:
    """The carried tokens stand before its own as the sharer cached them, rotated to their new places."""
    module = small_module(spec("qwen3"), spec("qwen3"), **SETTINGS)
    module.configure_model()
    module.eval()
    data = small_data(spec("qwen3"), spec("qwen3"))
    data.setup("fit")
    fit_pooler(module.link, data.read_by_both(4))
    channel = Channel(module.link.sharer, module.link.receiver, module.adapter)
    message = channel.send(FACTS, "likes ada")
    prompt = channel.writer.encoder(channel.prompts, "sharer").prompt([(fact,) for fact in FACTS], "likes ada")
    assert prompt.spans[0] == 0  # no token before the first passage: the same places, so the same rotation
    places = prompt.spans.index(-1)  # the passages' tokens
    sharer = channel.link.read_sharer(pad_left([prompt], 0))
    whole = fused(channel, message)
    assert whole.mask.shape[1] > message.spans > places
    for ours, theirs in zip((*whole.keys, *whole.values), (*sharer.keys, *sharer.values), strict=True):
        torch.testing.assert_close(ours[:, :, :places], theirs[:, :, :places], atol=1e-5, rtol=1e-5)


def test_a_fit_of_bare_loaders_is_refused_before_a_model_is_loaded(spec: Spec, tmp_path: Path) -> None:
    """There are no texts that both read, so there is nothing to start from."""
    module = small_module(spec("llama"), spec("qwen3"), **SETTINGS)
    with pytest.raises(SettingError, match="'carry' starts from texts that both models read, which only a PairData"):
        small_trainer(tmp_path).fit(module, DataLoader([0]))
    assert module._link is None


def test_a_fit_computes_the_map_itself_once(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = spec("llama"), spec("gemma3")
    module = small_module(*pair, **SETTINGS)
    assert module.adapter.pooler.unfitted
    small_trainer(tmp_path, AdapterExport(), LastCheckpoint(2)).fit(module, datamodule=small_data(*pair))
    channel = Channel.from_pretrained(tmp_path / "adapter")
    assert not channel.adapter.pooler.unfitted
    message = channel.send(FACTS, "likes ada")
    geometry = channel.link.receiver.geometry
    assert (message.origin.layers, message.origin.heads, message.origin.head_dim) == (
        geometry.layers, geometry.kv_heads, geometry.head_dim,
    )  # fmt: skip
    arrived = Message.from_bytes(message.to_bytes(), origin=channel.origin)
    assert str(channel.receive(arrived, "likes ada", FACTS[:1])) == str(
        channel.receive(message, "likes ada", FACTS[:1])
    )

    maps = channel.adapter.pooler.maps.clone()
    monkeypatch.setattr("lcf_lightning.module.fit_pooler", lambda *_: pytest.fail("fitted again"))
    again = small_module(*pair, **SETTINGS)
    trainer = small_trainer(tmp_path, LastCheckpoint(2), max_steps=6)
    trainer.fit(again, datamodule=small_data(*pair), ckpt_path=next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert torch.equal(again.adapter.pooler.maps, maps)


@torch.no_grad()
def test_the_map_predicts_what_the_receiver_would_have_cached(spec: Spec) -> None:
    """Of texts that it was not fitted on; better than the mean does, for keys and for values."""
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair, **SETTINGS)
    module.configure_model()
    data = small_data(*pair)
    data.setup("fit")
    texts = list(data.read_by_both(40))
    fit_pooler(module.link, texts[:32])
    pooler, link = module.adapter.pooler, module.link
    errors, spreads = torch.zeros(2), torch.zeros(2)
    for batch in texts[32:]:
        sharer = link.read_sharer(batch.sharer).read(module.adapter.config.sharer_layers, link.side("sharer").rotary)
        layers = tuple(range(link.receiver.geometry.layers))
        own = link.read_receiver(batch.receiver).read(layers, link.side("receiver").rotary)
        for side, (said, wanted) in enumerate(zip(sharer, own, strict=True)):
            mapped = pooler._mapped(said[:, :, :, batch.index[0]], side)[:, :, :, 1:]
            errors[side] += (mapped - wanted[:, :, :, 1:]).square().sum()
            spreads[side] += (wanted[:, :, :, 1:] - pooler.mean[:, side]).square().sum()
    assert (errors < 0.5 * spreads).all(), errors / spreads


def test_a_question_is_carried_where_there_is_no_passage(spec: Spec) -> None:
    """Its tokens are what the map is fitted on, too."""
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair, **SETTINGS)
    module.configure_model()
    module.eval()
    rows = [Example(f"{n}", f"What did {name} see?", ("ada",)) for n, name in enumerate(("ada", "bob", "cleo"))]
    data = small_data(*pair, source=Listed(*rows))
    data.setup("fit")
    fit_pooler(module.link, data.read_by_both(3))
    assert not module.adapter.pooler.unfitted
    channel = channel_of(module)
    prompt = channel.writer.encoder(channel.prompts, "sharer").prompt([], "What did ada see?")
    assert channel.send([], "What did ada see?").spans == prompt.spans.count(0) == len(prompt.ids)


def test_kept_prefills_serve_the_fit_too(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = spec("llama"), spec("qwen3")
    data = small_data(*pair)
    data.setup("fit")
    made = prefills_counted(monkeypatch)
    for expected in (8, 0):  # of four texts, by both; then of none
        module = small_module(*pair, **SETTINGS)
        module.prefills = PrefillSettings(str(tmp_path))
        module.configure_model()
        fit_pooler(module.link, data.read_by_both(4))
        assert sum(made) == expected
        made.clear()


@torch.no_grad()
def test_arms_of_every_kind_take_it(spec: Spec) -> None:
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair, **SETTINGS)
    module.configure_model()
    module.eval()
    data = small_data(*pair)
    data.setup("fit")
    data.setup("test")
    fit_pooler(module.link, data.read_by_both(8))
    batch: Batch = next(iter(data.test_dataloader()))
    arms = ["own_context", "message", "mismatched", "permuted", "zero", "self", "noise", "t2t_4_form"]
    losses = {row.arm: row.loss for row in run_arms(ArmCaches(module.link, module.writer, batch), arms, 3)}
    assert len(set(losses.values())) == len(arms)
