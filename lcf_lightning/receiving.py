"""The receiver's half of a `Channel`: from messages to what is decoded, or scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lcf_lightning.data.parsing import Question, Text, parse_passages, parse_question
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.tokens import Encoded, Tokens, split_last
from lcf_lightning.errors import DataError, MessageError
from lcf_lightning.hearing import hear, heard_by
from lcf_lightning.host import HostCopy, to_device
from lcf_lightning.likelihood import Candidate, Score, score_candidates
from lcf_lightning.message import Message
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.decoding import Decoder
from lcf_lightning.models.options import Decoding
from lcf_lightning.sending import digest_of, digests, warn_of_dropped
from lcf_lightning.stopwatch import Stopwatch

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel

Received = Message | Sequence[Message] | None
"""A message, several that are heard together, or None: the receiver alone."""

AT_ONCE = 8
"""Candidates that are scored at once, at least; each needs a copy of its prompt's cache."""


class Heard(NamedTuple):
    """Prompts that the receiver has read and messages that it has heard.

    Attributes:
        cache: Of all prompt tokens but the last, edited by the messages.
        tokens: These prompt tokens.
        last: ``[batch, 1]``, int64: the last prompt tokens.
        watch: What the stages took.
        finite: Whether the messages have left only finite values there, of each adapter that has heard one.
    """

    cache: KVCache
    tokens: Tokens
    last: Tensor
    watch: Stopwatch
    finite: tuple[HostCopy, ...]

    def check(self) -> None:
        """Raise a MessageError unless what was heard is finite; waits for that alone."""
        if not all(each.read().numpy().all() for each in self.finite):
            raise MessageError("this message edits the receiver's cache to values that are not finite.")


@torch.no_grad()
def decoder(
    channel: Channel,
    messages: Sequence[Received],
    questions: Sequence[Question],
    passages: Sequence[Text],
    max_new_tokens: int,
    options: dict[str, Any],
) -> Decoder:
    """The receiver's caches, edited by the messages, and what is to be decoded on them."""
    decoding = Decoding.of(channel.link.receiver, max_new_tokens, options, channel.prompts.stop)
    heard = _heard(channel, messages, questions, passages)
    tokens = heard.tokens
    return Decoder(
        channel.link.receiver, heard.cache, tokens.ids, tokens.mask, heard.last, heard.watch, decoding, heard.check
    )


@torch.no_grad()
def scores(
    channel: Channel,
    messages: Sequence[Received],
    questions: Sequence[Question],
    passages: Sequence[Text],
    candidates: Sequence[Sequence[str]],
) -> list[list[Score]]:
    """How probable each question's candidates are as the receiver's answer; see `Channel.score`."""
    encoder = channel.writer.encoder(channel.prompts, "receiver")
    tokens = [[_candidate(encoder, text) for text in texts] for texts in candidates]
    heard = _heard(channel, messages, questions, passages)
    flat = [Candidate(row, ids) for row, of_row in enumerate(tokens) for ids in of_row]
    found = iter(score_candidates(channel.link, heard.cache, heard.last, flat, max(len(questions), AT_ONCE)))
    heard.check()
    return [[next(found) for _ in texts] for texts in candidates]


def _heard(
    channel: Channel, messages: Sequence[Received], questions: Sequence[Question], passages: Sequence[Text]
) -> Heard:
    received = [received_together(channel, message) for message in messages]
    prompts = _prompts(channel, questions, passages)
    warn_of_dropped(prompts, "receiver")
    warn_of_unusual(channel, received, questions)
    return listen(channel, received, prompts)


def listen(
    channel: Channel, received: Sequence[Sequence[Message]], prompts: Sequence[Encoded], past: KVCache | None = None
) -> Heard:
    """The one path to an answer: the receiver reads its prompts, and its caches are edited by the messages.

    Args:
        channel: Whose receiver.
        received: The messages to each prompt; none where it is read alone.
        prompts: What is read: at least two tokens each.
        past: Of a single chat, what has been read and heard before its prompt, and stays as it is; null for nothing.
    """
    encoder, device = channel.writer.encoder(channel.prompts, "receiver"), channel.link.receiver.device
    ahead, question, last = encoder.split(prompts)
    start = 0 if past is None else past.mask.shape[1]
    if channel.link.shared:
        _require_same_text(received, ahead)
    ahead, question, last = ahead.to(device), question.to(device), to_device(last, device)
    rereads = bool(question.ids.shape[1])
    tokens = split_last(prompts, encoder.pad_id, device)[0] if rereads else ahead
    watch = Stopwatch(device, waits=False)
    behind = past is not None and channel.adapter.prepends and bool(received[0])
    finite: tuple[HostCopy, ...] = ()
    if past is not None and behind:
        with watch("fuse"):  # the message's tokens come first; as in a first turn, what is read ahead does not see them
            past, finite = hear(channel, received, past, tokens, start)
    with watch("receiver_prefill"):
        if past is None:
            cache = channel.link.read_receiver(ahead)
        else:
            cache = channel.link.read_on(past, ahead, hidden=past.mask.shape[1] - start)
    if not behind:
        with watch("fuse"):
            cache, finite = hear(channel, received, cache, question, start)
    if rereads:
        with watch("question"):
            cache = channel.link.read_on(cache, question)
    return Heard(cache, tokens, last, watch, finite)


def _require_same_text(received: Sequence[Sequence[Message]], tokens: Tokens) -> None:
    """Refuse messages that were not sent for just these prompts."""
    sent_for = [[(message.prompt, message.spans) for message in several] for several in received]
    asked = zip(digests(tokens), tokens.mask.sum(1).tolist(), strict=True)  # on the host
    if any(several and several != [prompt] for several, prompt in zip(sent_for, asked, strict=True)):
        raise MessageError(
            "message of another text: where both models read the same, send and receive need the same passages "
            "and question, and each question one message."
        )


def warn_of_unusual(channel: Channel, received: Sequence[Sequence[Message]], questions: Sequence[Question]) -> None:
    """Say, on the line that called the channel, which questions are empty, or not those that messages were sent for.

    Raises:
        MessageError: If a bound message was sent for another question.
    """
    for several, question in zip(received, questions, strict=True):
        history, asked = parse_question(question)
        known = {None, digest_of(history, asked)}
        others = [] if channel.link.shared else [each for each in several if each.prompt not in known]
        said = f"question={asked!r:.60} is not the one that its message was sent for"
        if any(each.binding is not None for each in others):
            raise MessageError(f"{said}; a bound message is for no other.")
        if not asked.strip():
            warnings.warn("the question is empty.", stacklevel=6)
        elif others:
            warnings.warn(f"{said}, which may not answer it.", stacklevel=6)


def received_together(channel: Channel, given: Received) -> list[Message]:
    """The messages to one question, if they may be heard together; none where the receiver answers alone."""
    if given is None:
        return []
    several = list(given) if isinstance(given, Sequence) else [given]
    if not several:
        raise DataError("receive needs at least one message for each question, or None for the receiver alone.")
    if not all(isinstance(message, Message) for message in several):
        raise MessageError(
            f"message= must be a Message, or several, not {type(given).__name__}; `Message.from_bytes` reads what has "
            "travelled."
        )
    if len(several) > 1 and any(message.pooled for message in several):
        raise MessageError("a pooled message stands alone; of several sharers each must send with pooled=false.")
    for message in several:
        heard_by(channel, message.origin)
    return several


def _prompts(channel: Channel, questions: Sequence[Question], passages: Sequence[Text]) -> list[Encoded]:
    """What the receiver reads itself."""
    texts = [parse_passages(text) for text in passages]
    asked = [parse_question(question) for question in questions]
    prompts = channel.writer.prompts("receiver", channel.prompts, texts, asked, unlimited=channel.link.shared)
    require_last(prompts)
    return prompts


def require_last(prompts: Sequence[Encoded]) -> None:
    """Raise a DataError unless each prompt has a token to be read before a message, and one after it."""
    if min(len(prompt.ids) for prompt in prompts) < 2:
        raise DataError("the receiver's prompt must have at least two tokens: the last is read after the message.")


def _candidate(encoder: PromptEncoder, text: str) -> list[int]:
    """The tokens of a candidate.

    Raises:
        DataError: If it is no text, or one without any token.
    """
    if not isinstance(text, str) or not (ids := encoder.candidate(text)):
        raise DataError(f"candidate {text!r:.60} must be a text of at least one token.")
    return ids
