"""Channels that have learnt nothing, whose answers are digits, and what a conversation is from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.conversation import State
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.hearing import together
from lcf_lightning.models.cache import KVCache, cache_argument, from_transformers
from lcf_lightning.models.geometry import KV
from tests.pairs import channel_of, small_module

Spec = Callable[[str], ModelSpec]
FACTS = ["likes ada tea .", "owns bob lamp .", "seeks cleo ruby ."]


@pytest.fixture
def made(spec: Spec) -> Callable[..., Channel]:
    """From families, pooler and settings of prompts to a channel with open gates; its sharer is blind."""

    def make(receiver: str, pooler: str | None, sharer: str = "", **prompts: Any) -> Channel:
        torch.manual_seed(3)
        pair = spec(sharer or receiver), spec(receiver)
        module = small_module(*pair, pooler=pooler, gate_noise="none", gate_init=1.0, dropout=0.0)
        module.configure_model()
        settings = PromptSettings(**{"share_question": False, "question": " {question}:", **prompts})
        module.adapter.config.metadata["prompts"] = asdict(settings)
        return channel_of(module.eval())

    return make


def digits(channel: Channel, first: str = " ") -> dict[str, Any]:
    """Decoding options for an answer of digits behind ``first``, whose tokens are those that a prompt writes of it."""
    tokenizer = channel.link.receiver.tokenizer
    allowed = tokenizer("0123456789", add_special_tokens=False)["input_ids"]
    opening = tokenizer(first, add_special_tokens=False)["input_ids"]
    begun: list[int] = []

    def among(_: int, ids: Tensor) -> list[int]:
        begun[:] = begun or [len(ids)]
        place = len(ids) - begun[0]
        return [opening[place]] if place < len(opening) else allowed

    return {"max_new_tokens": 5, "prefix_allowed_tokens_fn": among}


def spoken(channel: Channel, *messages: Message) -> Summaries:
    """Messages as the fuser takes them."""
    keys, values, present = together([messages], channel.adapter.gates.logits)
    return channel.link.merge(Summaries(KV(keys, values), present))


@torch.no_grad()
def at_once(channel: Channel, state: State, ahead: list[int]) -> KVCache:
    """One prefill of a whole conversation whose messages are tokens: these stand first, as their places say.

    Args:
        channel: Whose.
        state: The conversation.
        ahead: Of each time that something was heard, how many own tokens behind it do not see it.
    """
    reader, rotary = channel.link.receiver, channel.link.side("receiver").rotary
    layers = channel.adapter.config.receiver_layers
    assert layers == tuple(range(reader.geometry.layers))
    own = torch.arange(len(state.ids))
    places, seen, sides = [], [], []
    for told, hides in zip(state.told, ahead, strict=True):
        before = sum(each.slots for each in state.told[: len(seen)])
        places.append(torch.arange(told.slots) + told.at + before)
        seen.append((own >= told.at + hides)[:, None].expand(-1, told.slots))
        tokens = channel.adapter(spoken(channel, *(message for _, message in told.messages)), None)
        sides.append(KV(rotary.apply(tokens.keys, layers, places[-1][None]), tokens.values))
    moved = own + sum((own >= told.at).long() * told.slots for told in state.told)
    positions = torch.cat([*places, moved])
    visible = torch.cat([*seen, own[:, None] >= own], dim=1)
    near = moved[:, None] - positions < (getattr(reader.config, "sliding_window", None) or len(positions) + 1)
    masks = {
        kind: torch.where(seen_by, 0.0, torch.finfo(torch.float32).min)[None, None]
        for kind, seen_by in (("full_attention", visible), ("sliding_attention", visible & near))
    }
    stacked = [torch.cat([getattr(side, name) for side in sides], dim=3) for name in KV._fields] if sides else None
    past = reader.family.filled_cache(*map(tuple, stacked)) if stacked else reader.family.new_cache()
    reader.model(
        torch.tensor([state.ids]), attention_mask=masks, position_ids=moved[None], use_cache=True,
        **{cache_argument(type(reader.model)): past},
    )  # fmt: skip
    filled = from_transformers(reader.model, past, torch.ones(1, len(positions), dtype=torch.bool))
    order = positions.argsort()
    keys, values = (tuple(side[:, :, order] for side in sides) for sides in (filled.keys, filled.values))
    return KVCache(keys, values, filled.mask)


def same(one: KVCache | None, other: KVCache | None, **tolerance: float) -> None:
    """Both hold the same, to the rounding of float32."""
    assert one is not None
    assert other is not None
    assert one.mask.shape == other.mask.shape
    tolerance = tolerance or {"atol": 2e-5, "rtol": 2e-5}
    for ours, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
