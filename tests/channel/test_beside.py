"""One receiver that hears sharers of different models, each through its own adapter."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.models.cache import KVCache
from lcf_lightning.receiving import decoder
from tests.pairs import channel_of, small_module

Make = Callable[..., Channel]
FACTS = ["likes ada tea .", "owns bob lamp .", "seeks cleo ruby ."]
PROMPTS = PromptSettings(share_question=False, question=" {question}:")


@pytest.fixture
def made(spec: Callable[[str], ModelSpec]) -> Make:
    """From a sharer's family and a pooler to a channel, whose receiver may be that of another."""

    def make(sharer: str, pooler: str | None, beside: Channel | None = None, **prompts: Any) -> Channel:
        torch.manual_seed(len(sharer))
        pair = spec(sharer), spec("qwen3")
        module = small_module(*pair, pooler=pooler, gate_noise="none", gate_init=1.0, dropout=0.0)
        module.configure_model()
        module.adapter.config.metadata["prompts"] = asdict(replace(PROMPTS, **prompts))
        channel = channel_of(module.eval())
        return channel if beside is None else Channel(channel.link.sharer, beside.link.receiver, channel.adapter)

    return make


def cache_of(channel: Channel, *messages: Message) -> KVCache:
    return decoder(channel, [messages], ["seeks cleo"], [FACTS[2:]], 4, {}).cache


def assert_same(found: KVCache, expected: KVCache) -> None:
    assert torch.equal(found.mask, expected.mask)
    for mine, theirs in zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooler", ["prefix", "carry"])
def test_tokens_of_two_adapters_stand_as_those_of_one_do(made: Make, pooler: str) -> None:
    """The second adapter is the first one under another name, so one channel can say what both should give."""
    channel = made("llama", pooler)
    other = Channel(channel.link.sharer, channel.link.receiver, deepcopy(channel.adapter))
    other.adapter.config.metadata["prompts"]["text_request"] = "another name"
    assert other.origin != channel.origin
    first, second = channel.send(FACTS[:1]), other.send(FACTS[1:2])
    expected = cache_of(channel, first, replace(second, origin=channel.origin))
    assert_same(cache_of(channel.beside(other), second, first), expected)
    with pytest.raises(MessageError, match="message of another adapter or pair: adapter="):
        cache_of(channel, first, second)


def test_an_edit_is_of_what_the_receiver_has_read_and_not_of_another_adapters_tokens(made: Make) -> None:
    tokens = made("llama", "prefix")
    edits = made("gemma3", "span", tokens)
    token, edit = tokens.send(FACTS[:2]), edits.send(FACTS[:2])
    alone, both = cache_of(edits, edit), cache_of(tokens.beside(edits), token, edit)
    assert both.mask.shape[1] == alone.mask.shape[1] + token.spans
    for mine, theirs in zip(both.values, alone.values, strict=True):
        torch.testing.assert_close(mine[:, :, token.spans :], theirs)


def test_each_row_of_a_batch_hears_its_own(made: Make) -> None:
    tokens = made("llama", "prefix")
    both = tokens.beside(made("gemma3", "span", tokens))
    token, edit = tokens.send(FACTS[:2]), both.others[0].send(FACTS[1:])
    given: list[Any] = [token, None, [edit, token], edit]
    questions = ["seeks cleo"] * len(given)
    together = [answer.text for answer in both.receive_batch(given, questions, max_new_tokens=6)]
    assert together == [both.receive(each, "seeks cleo", max_new_tokens=6).text for each in given]
    scores = both.score_batch(given, questions, [["tea", "ruby"]] * len(given))
    alone = [both.score(each, "seeks cleo", ["tea", "ruby"]) for each in given]
    assert [[each.log_probability for each in row] for row in scores] == [
        pytest.approx([each.log_probability for each in row], abs=1e-4) for row in alone
    ]
    assert len({tuple(each.log_probability for each in row) for row in alone}) == len(given), "each message is heard"


def test_what_one_receiver_cannot_hear_together_is_refused(made: Make) -> None:
    channel, edits = made("llama", "prefix"), made("llama", "span")
    for first, other, message in (
        (channel, channel, "beside= names an adapter twice"),
        (channel, made("gemma3", "prefix"), "beside= needs one receiver for all"),
        (channel, made("gemma3", None, channel), r"pairs that read different texts \(pooler=null"),
        (edits, made("gemma3", "span", edits), "one adapter at most that edits"),
        (channel, [channel], "beside= takes channels, one after the other, not list"),
        (channel, edits.beside(made("gemma3", "prefix", edits)), "one adapter each"),
    ):
        with pytest.raises(SettingError, match=message):
            first.beside(other)
    assert channel.others == ()
    with pytest.raises(SettingError, match="must be of one adapter"):
        channel.beside(made("gemma3", "prefix", channel)).session()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", "{passages}."), ("separator", ";"), ("question", "{question}?"), ("answer", "{answer}."),
        ("answer_prefix", "So"), ("chat", True), ("reread", "question"), ("stop", "."), ("max_receiver_tokens", 9),
    ],
)  # fmt: skip
def test_what_the_receiver_reads_must_be_alike(made: Make, name: str, value: Any) -> None:
    channel = made("llama", "prefix")
    with pytest.raises(SettingError, match=f"prompts alike in training: {name} is "):
        channel.beside(made("gemma3", "prefix", channel, **{name: value}))
    channel.beside(made("gemma3", "prefix", channel, text_request="another"))


def test_a_message_is_heard_once_though_two_adapters_would_take_it(made: Make) -> None:
    """A channel that does not know its sharer takes any."""
    channel = made("llama", "prefix")
    other = Channel(channel.link.sharer, channel.link.receiver, deepcopy(channel.adapter))
    other.adapter.config = replace(other.adapter.config, sharer=replace(other.adapter.config.sharer, fingerprint=None))
    with pytest.raises(SettingError, match="names an adapter twice"):
        channel.beside(other)
