"""The whole way of a message that becomes tokens before the receiver's own (pooler=prefix)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.adapter.subset import keep_layers
from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.layer_importance import _Edits
from lcf_lightning.evaluation.prediction import answer_losses, run_arms
from lcf_lightning.link import Link
from lcf_lightning.models.spec import DTYPES
from lcf_lightning.models.store import PrefillSettings
from lcf_lightning.receiving import decoder
from tests.adapter.conftest import random_kv
from tests.pairs import channel_of, prefills_counted, small_data
from tests.prefix.conftest import FACTS, Spec, fused, ready, written
from tests.test_many_sharers import EXAMPLES, PROMPTS


def test_four_lines_answer_as_the_evaluation_does(channel: Channel) -> None:
    config = channel.adapter.config
    sharer, receiver = (ModelSpec(side.path) for side in (config.sharer, config.receiver))
    data = small_data(sharer, receiver)
    data.setup("test")
    seen = 0
    for batch in data.test_dataloader():  # answered together there, alone here
        expected = run_arms(ArmCaches(channel.link, channel.writer, batch), ["message"], 6)
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
        made = decoder(channel, [message], ["likes ada"], [FACTS[:1]], 4, {})
    assert message.spans == 4  # the question is a span of its own
    assert made.cache.keys[0].shape[2] == alone.prompt_tokens - 1 + 4
    assert made.ids.shape[1] == alone.prompt_tokens + 4
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


@torch.no_grad()
def test_several_sharers_are_heard_as_one(channel: Channel) -> None:
    """Summaries of two messages stand one after the other, and know nothing of each other."""
    one, two, three = (channel.send(facts, "likes ada") for facts in (FACTS[:2], FACTS[2:], FACTS[:1] * 3))
    layers, rotary = channel.adapter.config.receiver_layers, channel.link.side("receiver").rotary
    count, own = one.spans + two.spans, channel.receive(one, "likes ada", FACTS[:1]).prompt_tokens - 1
    both, others, first, second = (fused(channel, *sent) for sent in ((one, two), (one, three), (one,), (two,)))
    assert (both.mask.shape[1], others.mask.shape[1]) == (count + own, one.spans + three.spans + own)
    for name in ("keys", "values"):
        for ours, longer, alone in zip(*(getattr(cache, name) for cache in (both, others, first)), strict=True):
            torch.testing.assert_close(ours[:, :, : one.spans], alone[:, :, : one.spans])  # keys at the same positions
            torch.testing.assert_close(ours[:, :, : one.spans], longer[:, :, : one.spans])
        ours, theirs, plain = (getattr(cache.read(layers, rotary), name) for cache in (both, second, first))
        torch.testing.assert_close(ours[..., one.spans : count, :], theirs[..., : two.spans, :], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours[..., count:, :], plain[..., one.spans :, :], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both.keys[0][:, :, one.spans : count], second.keys[0][:, :, : two.spans], atol=1e-3)


def test_all_arms_run_and_an_edit_of_all_layers_is_the_message(channel: Channel) -> None:
    config = channel.adapter.config
    data = small_data(ModelSpec(config.sharer.path), ModelSpec(config.receiver.path))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    arms = ["message", "mismatched", "zero", "self", "noise", "own_context"]
    answers = run_arms(ArmCaches(channel.link, channel.writer, batch), arms, 4)
    assert {answer.arm for answer in answers} == set(arms)
    losses = {arm: [answer.loss for answer in answers if answer.arm == arm] for arm in arms}
    for arm in arms[1:]:
        apart = zip(losses["message"], losses[arm], strict=True)
        assert max(abs(one - other) for one, other in apart) > 1e-4, arm
    edits = _Edits(channel.link, channel.writer, batch)
    with torch.no_grad():
        whole = edits.reading(range(config.receiver.geometry.layers)).cache
        assert torch.equal(whole.keys[0], edits.caches.message.cache.keys[0])
        assert whole.keys[0].shape[2] > edits.caches.own_context.cache.keys[0].shape[2]


def test_what_means_nothing_is_refused(channel: Channel) -> None:
    with pytest.raises(SettingError, match="pooled=true must be false with pooler=prefix, where nothing is pooled"):
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


@pytest.mark.parametrize("receiver", ["qwen3", "gemma3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_a_receiver_in_half_precision_hears_what_a_whole_one_does(
    spec: Spec, receiver: str, dtype: str, tolerance: float
) -> None:
    logits = {}
    for name in ("float32", dtype):
        module = ready(spec("llama"), replace(spec(receiver), dtype=name))
        channel = channel_of(module)
        batch = written(channel)
        own = channel.link.read_receiver(batch.receiver)
        cache = channel.link.fuse(
            own, channel.link.pool(channel.link.read_sharer(batch.sharer), batch.index), temperature=1.0
        )
        assert {tensor.dtype for tensor in cache.keys + cache.values} == {DTYPES[name]}
        heard, alone = (
            channel.link.continuation(each, batch.last, batch.answers, batch.answer_mask).logits()
            for each in (cache, own)
        )
        logits[name] = heard.detach()
        heard[batch.answer_mask].logsumexp(-1).sum().backward()
        for parameter in module.adapter.parameters():
            assert parameter.grad is not None
            assert 0 < parameter.grad.norm() < float("inf")
    torch.testing.assert_close(logits[dtype], logits["float32"], atol=tolerance, rtol=0)
    assert (heard - alone).abs().max() > 3 * tolerance


@torch.no_grad()
def test_a_pruned_prefix_answers_as_the_full_one_with_these_gates_closed(channel: Channel, tmp_path: Path) -> None:
    """A closed gate leaves zero tokens, which is not nothing: the receiver's attention is shared out among them too."""
    layers = channel.adapter.config.receiver_layers
    kept = layers[0], layers[-1]
    keep_layers(channel.adapter, kept).save_pretrained(tmp_path / "pruned")
    full, nothing = copy.deepcopy(channel.adapter), copy.deepcopy(channel.adapter)
    full.gates.logits[[layer for layer in layers if layer not in kept]] = -1.0
    nothing.gates.logits.fill_(-1.0)
    pruned = Channel.from_pretrained(tmp_path / "pruned")
    closed, silent = (Channel(channel.link.sharer, channel.link.receiver, adapter) for adapter in (full, nothing))
    assert [len(each.adapter.config.receiver_layers) for each in (pruned, closed)] == [2, len(layers)]

    ours, theirs = (fused(each, each.send(FACTS, "likes ada")) for each in (pruned, closed))
    for layer in layers:
        for one, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert torch.equal(one[layer], other[layer])
            assert bool(one[layer][:, :, :4].any()) == (layer in kept)  # three facts and a question
    one, other = (
        each.receive(each.send(FACTS, "likes ada"), "likes ada", FACTS[:1], max_new_tokens=6).text
        for each in (pruned, closed)
    )
    assert one == other

    batch = written(channel)
    measured = answer_losses(channel.link, _Edits(channel.link, channel.writer, batch).reading(kept), batch)
    assert torch.equal(
        measured, answer_losses(pruned.link, ArmCaches(pruned.link, pruned.writer, batch).message, batch)
    )
    caches = ArmCaches(silent.link, silent.writer, batch)
    assert caches.message.cache.mask.sum() == caches.own_context.cache.mask.sum() + 5 + 3
    losses = [answer_losses(silent.link, reading, batch) for reading in (caches.message, caches.own_context)]
    assert (losses[0] - losses[1]).abs().min() > 1e-4


@torch.no_grad()
def test_kept_prefills_give_the_same_to_the_bit(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the receiver's rows are padded too: what stands there is kept as zeros."""
    made = prefills_counted(monkeypatch)
    plain = channel_of(ready(spec("llama"), spec("qwen3")))
    batch, losses = written(plain, 2), []
    for prefills in (None, PrefillSettings(str(tmp_path)), PrefillSettings(str(tmp_path))):
        link = Link(plain.link.sharer, plain.link.receiver, plain.adapter, prefills)
        losses.append(answer_losses(link, ArmCaches(link, plain.writer, batch).message, batch))
        assert made == ([] if prefills is None else [4, 2])  # two sharers each; once
    assert not batch.receiver.mask.all()
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_arms_of_messages_of_unequal_length_are_those_of_each_row(spec: Spec) -> None:
    """Four facts and two: what pads the shorter message is no token, and counts in no moment of the noise."""
    channel = channel_of(ready(spec("llama"), spec("qwen3")))
    collator = channel.writer.collator(PROMPTS)
    rows = [replace(row, receiver=EXAMPLES[0].receiver) for row in EXAMPLES]
    pairs = [(rows[0], rows[1]), (rows[1], rows[0])]
    arms = ["message", "mismatched", "zero", "self", "noise"]
    together = run_arms(ArmCaches(channel.link, channel.writer, collator.evaluate(pairs)), arms, 4)
    alone = [
        answer
        for pair in pairs
        for answer in run_arms(ArmCaches(channel.link, channel.writer, collator.evaluate([pair])), arms, 4)
    ]
    losses = {(answer.id, answer.arm): answer.loss for answer in alone}
    assert len(together) == len(losses) == 10
    for answer in together:
        assert answer.loss == pytest.approx(losses[answer.id, answer.arm], abs=1e-4)
    for id in ("one", "two"):
        assert len({round(losses[id, arm], 5) for arm in arms}) == 5
