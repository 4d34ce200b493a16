"""The whole way of a message that becomes tokens before the receiver's own (pooler=prefix)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.evaluation.answering import run_arms
from lcf_lightning.evaluation.arms import ArmCaches
from lcf_lightning.evaluation.pruning import _Edits
from tests.adapter.conftest import random_kv
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
FACTS = ["likes ada tea .", "owns ben lamp .", "seeks cleo ruby ."]


@pytest.fixture(params=["qwen3", "gemma3"])
def trained(request: pytest.FixtureRequest, spec: Spec, tmp_path: Path) -> Path:
    sharer, receiver = spec("llama"), spec(request.param)
    module = small_module(sharer, receiver, pooler="prefix", gate_noise="none", dropout=0.0)
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=small_data(sharer, receiver))
    return tmp_path / "adapter"


@pytest.fixture
def channel(trained: Path) -> Channel:
    return Channel.from_pretrained(trained)


def test_four_lines_answer_as_the_evaluation_does(channel: Channel) -> None:
    config = channel.adapter.config
    sharer, receiver = (ModelSpec(side.path) for side in (config.sharer, config.receiver))
    data = small_data(sharer, receiver)
    data.setup("test")
    seen = 0
    for batch in data.test_dataloader():  # answered together there, alone here
        expected = run_arms(ArmCaches(channel, batch), ["message"], 6)
        for example, answer in zip(batch.examples, expected, strict=True):
            message = channel.send([passage[0] for passage in example.sharer], question=example.question)
            travelled = Message.from_bytes(message.to_bytes(), origin=channel.origin)
            own = [passage[0] for passage in example.receiver]
            heard = channel.receive(travelled, example.question, own, max_new_tokens=6)
            assert heard.text.split("\n")[0].strip() == answer.prediction
            seen += 1
    assert seen == 12


def test_each_span_becomes_a_token(channel: Channel) -> None:
    message = channel.send(FACTS, "likes ada")
    alone = channel.receive(message, "likes ada", FACTS[:1])
    with torch.no_grad():
        decoder = channel._decoder([message], ["likes ada"], [FACTS[:1]], 4, {})
    assert message.spans == 4  # the question is a span of its own
    assert decoder.cache.keys[0].shape[2] == alone.prompt_tokens - 1 + 4
    assert decoder.ids.shape[1] == alone.prompt_tokens + 4
    texts = [channel.receive(message, "likes ada", FACTS[:1], **way).text for way in ({}, {"num_beams": 1})]
    pieces = channel.receive(message, "likes ada", FACTS[:1], stream=True)
    assert {"".join(pieces).strip(), *texts} == {alone.text}
    assert len(channel.receive(message, "likes ada", FACTS[:1], num_beams=3, max_new_tokens=4).text) > 0


def test_a_batch_gives_what_its_rows_give(channel: Channel) -> None:
    """Of other lengths and numbers of spans, also where a window slides."""
    texts, asked = [FACTS, FACTS[:1], FACTS[1:]], ["likes ada", "owns ben", "seeks cleo ruby and more of it"]
    messages = channel.send_batch(texts, asked)
    own = [FACTS[:2], (), FACTS[2:]]
    together = channel.receive_batch(messages, asked, own, max_new_tokens=6)
    for message, question, passages, answer in zip(messages, asked, own, together, strict=True):
        single = channel.receive(message, question, passages, max_new_tokens=6)
        assert (single.text, single.prompt_tokens) == (answer.text, answer.prompt_tokens)


def test_several_sharers_are_heard_as_one(channel: Channel) -> None:
    """Summaries of two messages stand one after the other."""
    one, two = channel.send(FACTS[:2], "q"), channel.send(FACTS[2:], "q")
    with torch.no_grad():
        both, first = (channel._decoder([sent], ["q"], [()], 4, {}).cache for sent in ([one, two], [one]))
    assert both.keys[0].shape[2] - first.keys[0].shape[2] == two.spans
    for ours, theirs in zip(both.values, first.values, strict=True):
        torch.testing.assert_close(ours[:, :, : one.spans], theirs[:, :, : one.spans])


def test_all_arms_run_and_an_edit_of_all_layers_is_the_message(channel: Channel) -> None:
    config = channel.adapter.config
    data = small_data(ModelSpec(config.sharer.path), ModelSpec(config.receiver.path))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    arms = ["message", "mismatched", "zero", "self", "noise", "own_context"]
    answers = run_arms(ArmCaches(channel, batch), arms, 4)
    assert {answer.arm for answer in answers} == set(arms)
    losses = {arm: [answer.loss for answer in answers if answer.arm == arm] for arm in arms}
    assert all(losses["message"] != losses[arm] for arm in arms[1:])
    edits = _Edits(channel, batch)
    with torch.no_grad():
        whole = edits.reading(range(config.receiver.geometry.layers)).cache
        assert torch.equal(whole.keys[0], edits.caches.message.cache.keys[0])
        assert whole.keys[0].shape[2] > edits.caches.own_context.cache.keys[0].shape[2]


def test_what_means_nothing_is_refused(channel: Channel) -> None:
    with pytest.raises(SettingError, match="pooled=true: with pooler=prefix nothing is pooled"):
        channel.send(FACTS, "likes ada", pooled=True)
    geometry = channel.adapter.config.receiver.geometry
    message = channel.send(FACTS, "likes ada")
    sent = channel.adapter.merge(channel.adapter.summarise(*_cache_of(channel)))
    with pytest.raises(GeometryError, match="receiver of pooler=prefix must be None"):
        channel.adapter(sent, random_kv(geometry.layers, geometry, 1, 3))
    assert message.spans == 4


def _cache_of(channel: Channel) -> tuple[object, torch.Tensor]:
    config = channel.adapter.config
    return random_kv(len(config.receiver_layers), config.sharer.geometry, 1, 4), torch.tensor([[0, 0, 1, 1]])
