"""A message that a model in the middle has heard and sends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from lcf_lightning import Channel, Message, ModelSpec, relay
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import DataError, MessageError, SettingError
from lcf_lightning.receiving import decoder
from tests.pairs import channel_of, small_module

FACTS = ["likes ada tea .", "owns bob lamp .", "seeks cleo ruby ."]
Make = Callable[..., Channel]


@pytest.fixture
def made(spec: Callable[[str], ModelSpec]) -> Make:
    """From two families and a pooler to a channel; its sharer may be the receiver of another."""

    def make(sharer: str, receiver: str, pooler: str | None, after: Channel | None = None, **prompts: Any) -> Channel:
        torch.manual_seed(len(sharer))
        module = small_module(spec(sharer), spec(receiver), pooler=pooler, gate_noise="none", gate_init=1.0, dropout=0)
        module.configure_model()
        settings = PromptSettings(**{"share_question": False, "question": " {question}:", **prompts})
        module.adapter.config.metadata["prompts"] = asdict(settings)
        channel = channel_of(module.eval())
        if after is None:
            return channel
        return Channel(after.link.receiver, channel.link.receiver, channel.adapter)

    return make


def test_what_twins_carry_goes_on_as_it_is(made: Make) -> None:
    """Between equal models an untrained carry is the identity: two hops are one."""
    first = made("qwen3", "qwen3", "carry")
    second = made("qwen3", "qwen3", "carry", first)
    with torch.no_grad():
        for channel in (first, second):  # before anything is fitted or trained, tokens stay as they are
            assert torch.equal(channel.send(FACTS).keys, first.send(FACTS).keys)
    sent = first.send(FACTS[:2])
    own, relayed = second.send(FACTS[2:]), relay(sent, first, second, FACTS[2:])
    assert relayed.origin == second.origin
    assert relayed.spans == sent.spans + own.spans
    for side in ("keys", "values"):
        expected = torch.cat([getattr(sent, side), getattr(own, side)], dim=3)
        torch.testing.assert_close(getattr(relayed, side), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("poolers", [("prefix", "prefix"), ("prefix", "carry"), ("span", "span"), ("span", "prefix")])
def test_every_kind_of_message_reaches_the_third_model(made: Make, poolers: tuple[str, str]) -> None:
    first = made("llama", "qwen3", poolers[0])
    last = "qwen3" if poolers[1] == "carry" else "gemma3"  # between others its map would have to be fitted
    second = made("qwen3", last, poolers[1], first)
    told = [relay(first.send(facts), first, second, FACTS[2:]) for facts in (FACTS[:1], FACTS[1:2])]
    caches = [decoder(second, [each], ["likes ada"], [()], 4, {}).cache for each in (*told, second.send(FACTS[2:]))]
    values = [torch.stack(cache.values)[..., -1, :] if poolers[1] == "span" else torch.stack(cache.values)[:, :, :, 0]
              for cache in caches]  # fmt: skip
    assert not torch.allclose(values[0], values[1]), "it depends on what the first model has read"
    assert not torch.allclose(values[0], values[2])
    assert isinstance(second.receive(told[0], "likes ada").text, str)
    assert Message.from_bytes(told[0].to_bytes(), origin=second.origin).spans == told[0].spans


def test_what_does_not_meet_is_refused(made: Make) -> None:
    first = made("llama", "qwen3", "prefix")
    second = made("qwen3", "gemma3", "prefix", first)
    message = first.send(FACTS)
    for onward, sentence in (
        (made("qwen3", "gemma3", "prefix"), "relay needs one model in the middle"),
        (made("qwen3", "gemma3", None, first), "pooler=null reads one"),
        (made("qwen3", "gemma3", "prefix", first, share_question=True, send_tokens=2), "send_tokens=2 must be null"),
    ):
        with pytest.raises(SettingError, match=sentence):
            relay(message, first, onward, FACTS)
    with pytest.raises(MessageError, match="another adapter or pair"):
        relay(second.send(FACTS), first, second, FACTS)
    broken = Message(message.keys * torch.inf, message.values, message.origin)
    with pytest.raises(MessageError, match="not finite"):
        relay(broken, first, second, FACTS)
    with pytest.raises(DataError, match="at least one passage here"):
        relay(message, first, second)
