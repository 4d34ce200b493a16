"""The receiver's half of a `Channel`: from messages to what is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.parsing import Question, Text, parse_passages, parse_question
from lcf_lightning.data.tokens import Tokens, split_last
from lcf_lightning.errors import DataError, MessageError
from lcf_lightning.message import Message, together
from lcf_lightning.models.decoding import Decoder, Decoding
from lcf_lightning.models.geometry import KV
from lcf_lightning.sending import digests, warn_of_dropped
from lcf_lightning.stopwatch import Stopwatch

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel


@torch.no_grad()
def decoder(
    channel: Channel,
    messages: Sequence[Message | Sequence[Message]],
    questions: Sequence[Question],
    passages: Sequence[Text],
    max_new_tokens: int,
    options: dict[str, Any],
) -> Decoder:
    """The receiver's caches, edited by the messages, and what is to be decoded on them."""
    link = channel.link
    decoding = Decoding.of(link.receiver, max_new_tokens, options, channel.prompts.stop)
    received = [_received(channel, message) for message in messages]
    tokens, last = _prompts(channel, questions, passages)
    if link.shared:
        sent_for = [[(message.prompt, message.spans) for message in several] for several in received]
        asked = zip(digests(tokens), tokens.mask.sum(1).tolist(), strict=True)
        if sent_for != [[prompt] for prompt in asked]:
            raise MessageError(
                "message of another text: where both models read the same, send and receive need the same passages "
                "and question, and each question one message."
            )
    keys, values, present = together(received, channel.adapter.gates.logits)
    watch, layers = Stopwatch(link.receiver.device), channel.adapter.config.receiver_layers
    with watch("receiver_prefill"):
        cache = link.read_receiver(tokens)
    with watch("fuse"):
        cache = link.fuse(cache, link.merge(Summaries(KV(keys, values), present)))
        if not all(bool(torch.isfinite(side[layer]).all()) for side in (cache.keys, cache.values) for layer in layers):
            raise MessageError("this message edits the receiver's cache to values that are not finite.")
    return Decoder(link.receiver, cache, tokens.ids, tokens.mask, last, watch, decoding)


def _received(channel: Channel, given: Message | Sequence[Message]) -> list[Message]:
    """The messages to one question, if they may be heard together."""
    several = list(given) if isinstance(given, Sequence) else [given]
    if not several:
        raise DataError("receive needs at least one message for each question.")
    if not all(isinstance(message, Message) for message in several):
        raise MessageError("receive takes a Message, or several; `Message.from_bytes` reads what has travelled.")
    if len(several) > 1 and any(message.pooled for message in several):
        raise MessageError("a pooled message stands alone; of several sharers each must send with pooled=false.")
    for message in several:
        message.origin.require(channel.origin)
    return several


def _prompts(channel: Channel, questions: Sequence[Question], passages: Sequence[Text]) -> tuple[Tokens, Tensor]:
    """What the receiver reads itself: all but the last token, and it."""
    texts = [parse_passages(text) for text in passages]
    asked = [parse_question(question) for question in questions]
    prompts = channel.writer.prompts("receiver", channel.prompts, texts, asked, unlimited=channel.link.shared)
    warn_of_dropped(prompts, "receiver")
    if min(len(prompt.ids) for prompt in prompts) < 2:
        raise DataError("the receiver's prompt must have at least two tokens: the last is read after the message.")
    return split_last(prompts, channel.writer.pad_id("receiver"), channel.link.receiver.device)
