"""The sharer's half of a `Channel`: from texts to messages."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.binding import bound
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.parsing import Question, Text, parse_passages, parse_question
from lcf_lightning.data.prompts import History
from lcf_lightning.data.spans import parse_span_mode
from lcf_lightning.data.tokens import Encoded, Tokens, extent_of, pad_left
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.link import Role
from lcf_lightning.message import Message
from lcf_lightning.origin import Origin

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel


@torch.no_grad()
def messages(
    channel: Channel,
    passages: Sequence[Text],
    questions: Sequence[Question | None],
    pooled: bool,
    since: Text | None = None,
    **binding: Any,
) -> list[Message]:
    """One message for each text and question, each bound as `bound` is told; see `Channel.send`."""
    require_lists(texts=passages, questions=questions)
    bound(**binding)  # what is wrong is said before anything is read
    if not passages:
        return []
    channel.link.side("sharer")  # must be loaded
    texts = [parse_passages(text) for text in passages]
    asked: list[tuple[History, str | None]] = [
        ((), None) if question is None else parse_question(question) for question in questions
    ]
    if pooled and not channel.adapter.poolable:
        pooler = channel.adapter.config.settings.pooler
        raise SettingError(
            f"pooled=true must be false with pooler={pooler or 'null'}, where nothing is pooled before it is read."
        )
    known = 0 if since is None else _known_spans(channel, texts[0], since)
    read_for: list[str | None] = [None] * len(texts)
    if channel.link.shared:
        summaries, read_for = _aligned(channel, texts, asked)
    else:
        _warn_of_unusual(channel, texts, [question for _, question in asked])
        summaries = _summaries(channel, texts, asked if channel.takes_question else [((), None)] * len(asked), known)
        summaries = channel.adapter.merge(summaries) if pooled else summaries
        if channel.takes_question:
            read_for = [None if question is None else digest_of(history, question) for history, question in asked]
    kv, present = summaries
    sides = [(kv.keys[:, row : row + 1, :, at], kv.values[:, row : row + 1, :, at]) for row, at in enumerate(present)]
    return [
        Message(*side, channel.origin, pooled, prompt, bound(**binding))
        for side, prompt in zip(sides, read_for, strict=True)
    ]


def _warn_of_unusual(channel: Channel, texts: Sequence[tuple[Passage, ...]], questions: Sequence[str | None]) -> None:
    """Say, on the line that called the channel, what is sent otherwise than in training.

    Raises:
        SettingError: If the question decides what is sent, and there is none.
    """
    said = []
    if channel.takes_question:
        if channel.prompts.send_tokens is not None and None in questions:
            raise SettingError(
                f"question=None must be given where send_tokens={channel.prompts.send_tokens}: it decides what is sent."
            )
        if None in questions:
            said.append("question=None, but this adapter's sharer was shown the question in training: give it here.")
        if any(question is not None and not question.strip() for question in questions):
            said.append("the question is empty.")
        if not all(texts):
            said.append("the sharer is given nothing to read but the question.")
    elif any(question is not None for question in questions):
        said.append("question not read: this adapter's sharer was shown none in training; give it to receive.")
    for message in said:
        warnings.warn(message, stacklevel=5)


def _known_spans(channel: Channel, text: tuple[Passage, ...], since: Text) -> int:
    """How many spans of a text were sent before.

    Raises:
        SettingError: If a message of the others alone would not be heard as one of all, or cannot be told apart.
        DataError: If the text does not begin with what was sent.
    """
    kind, _ = parse_span_mode(channel.prompts.spans)
    why = None
    if not channel.adapter.prepends:
        why = f"with pooler={channel.adapter.config.settings.pooler or 'null'}: all spans together make one edit."
    elif channel.takes_question:
        why = "where the sharer is shown the question: each of its messages is for one."
    elif kind == "window":
        why = f"with spans={channel.prompts.spans!r}: what comes behind a text changes its last window."
    if why is not None:
        raise SettingError(f"since= must be left out {why}")
    sent = parse_passages(since)
    if text[: len(sent)] != sent:
        raise DataError("since= must be what the passages begin with, passage by passage.")
    return sum(map(len, sent)) if kind == "sentence" else len(sent)


def _summaries(
    channel: Channel, texts: Sequence[tuple[Passage, ...]], asked: Sequence[tuple[History, str | None]], known: int = 0
) -> Summaries:
    """Summaries of each text's spans but the first ``known``."""
    prompts = channel.writer.prompts("sharer", channel.prompts, texts, asked)
    warn_of_dropped(prompts, "sharer")
    prompts = [replace(prompt, spans=[max(-1, span - known) for span in prompt.spans]) for prompt in prompts]
    if any(max(prompt.spans, default=-1) < 0 for prompt in prompts):
        new = " that is new" if known else ""
        raise DataError(
            f"send needs at least one passage{new}, or a question that the sharer is shown, within "
            f"max_sharer_tokens={channel.prompts.max_sharer_tokens}."
        )
    sharer = channel.link.sharer
    send = channel.prompts.send_tokens
    tokens = pad_left(prompts, channel.writer.pad_id("sharer"), send).to(sharer.device)
    extent = extent_of([[prompt] for prompt in prompts], send)
    longest, limit = tokens.mask.shape[1], sharer.family.positions(sharer.config)
    if limit is not None and longest > limit:
        message = f"the sharer reads {longest} tokens, and {sharer.spec.path!r} was made for {limit}."
        warnings.warn(message, stacklevel=5)
    return channel.link.summarise(channel.link.read_sharer(tokens), tokens.spans, extent)


def _aligned(
    channel: Channel, texts: Sequence[tuple[Passage, ...]], asked: Sequence[tuple[History, str | None]]
) -> tuple[Summaries, list[str | None]]:
    """The sharer's cache at each of the receiver's tokens, and digests of these."""
    examples = [
        Example("message", question or "", ("",), shared=text, history=tuple(history))
        for text, (history, question) in zip(texts, asked, strict=True)
    ]
    batch = channel.writer.collator(channel.prompts).train(examples).to(channel.link.sharer.device)
    summaries = channel.link.pool(channel.link.read_sharer(batch.sharer), batch.index)
    return Summaries(summaries.kv, batch.receiver.mask), digests(batch.receiver)


def origin_of(adapter: CacheAdapter) -> Origin:
    """What tells messages of this adapter and its pair from others. Reads all of the adapter's weights."""
    config = adapter.config
    message = config.message
    return Origin(
        adapter=adapter.fingerprint(),
        sharer=config.sharer.fingerprint,
        receiver=config.receiver.fingerprint,
        layers=message.layers,
        heads=message.kv_heads,
        head_dim=message.head_dim,
    )


def require_lists(**lists: Any) -> None:
    """Raise a DataError unless all are lists of one length."""
    for name, value in lists.items():
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise DataError(f"{name} of a batch must be a list, not {type(value).__name__}.")
    if len({len(value) for value in lists.values()}) > 1:
        counts = ", ".join(f"{len(value)} {name}" for name, value in lists.items())
        raise DataError(f"{counts} of a batch must be as many of each.")


def warn_of_dropped(prompts: Sequence[Encoded], role: Role) -> None:
    """Say, on the line that called the channel, how many spans token limits took away."""
    dropped = sum(prompt.dropped for prompt in prompts)
    if dropped:
        message = f"max_{role}_tokens, as in training, leaves out {dropped} spans of what the {role} reads."
        warnings.warn(message, stacklevel=6)


def digest_of(history: History, question: str) -> str:
    """A digest of a question and the chat before it, whatever blanks are around it."""
    said = json.dumps([*map(list, history), question.strip()])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def digests(prompts: Tokens) -> list[str | None]:
    """A digest of each prompt's token ids."""
    return [
        hashlib.blake2b(ids[mask].tobytes(), digest_size=16).hexdigest()
        for ids, mask in zip(prompts.ids.cpu().numpy(), prompts.mask.cpu().numpy(), strict=True)
    ]
