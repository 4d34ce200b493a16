"""`relay`: a model that has heard a message tells a third one of it, through its own cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lcf_lightning.channel import Channel
from lcf_lightning.data.parsing import Question, Text, parse_passages, parse_question
from lcf_lightning.data.tokens import pad_left
from lcf_lightning.errors import DataError, MessageError, SettingError
from lcf_lightning.hearing import hear, heard_by, hearings
from lcf_lightning.host import HostCopy
from lcf_lightning.message import Message
from lcf_lightning.sending import digest_of, warn_of_dropped


@torch.no_grad()
def relay(
    message: Message, heard: Channel, onward: Channel, passages: Text = (), question: Question | None = None
) -> Message:
    """What a model in the middle sends on: the message that it has heard, and what it has read itself.

    Its cache of its own passages is edited by the message as a receiver's is (beyond the paper), and then sent as a
    sharer's is. Where messages become tokens (``pooler: prefix``, ``carry``) each of these is a span of the new one,
    before those of its own passages. Nothing is generated.

    Args:
        message: What was sent to the model in the middle.
        heard: The channel that it was sent on; the model in the middle is its receiver.
        onward: The channel that it goes on; the same model, held once, is its sharer.
        passages: What the model in the middle has read itself.
        question: Shown to it as to a sharer, see `Channel.send`.

    Returns:
        A message of ``onward``, of one row.

    Raises:
        MessageError: If the message is not one of ``heard``, or edits the cache to what is not finite.
        SettingError: If the two channels do not meet in one model, or either is of a pair that reads the same text.
        GeometryError: If the message and the prompt are longer than the model in the middle can see.
        DataError: If a chat cannot be understood, or the model in the middle would read no token itself.
    """
    _require_meeting(heard, onward)
    heard_by(heard, message.origin)
    history, asked = ((), None) if question is None else parse_question(question)
    shown = (history, asked) if onward.takes_question else ((), None)
    prompts = onward.writer.prompts("sharer", onward.prompts, [parse_passages(passages)], [shown])
    warn_of_dropped(prompts, "sharer")
    if not prompts[0].ids:
        raise DataError("relay needs at least one passage here: the model in the middle would read no token itself.")
    tokens = pad_left(prompts, onward.writer.pad_id("sharer")).to(onward.link.sharer.device)
    edits, ahead = hearings(heard, [[message]])
    finite: list[HostCopy] = []
    own = onward.link.prefill_sharer(tokens)
    cache = hear([*edits, *ahead], own, tokens.until(0), 0, finite)
    if not all(bool(each.read().all()) for each in finite):
        raise MessageError("this message edits the cache of the model in the middle to values that are not finite.")
    spans = _with_heard(tokens.spans, cache.mask.shape[1] - own.mask.shape[1])
    kv, present = onward.link.summarise(cache, spans)
    digest = digest_of(history, asked) if asked is not None and onward.takes_question else None
    return Message(kv.keys[:, :, :, present[0]], kv.values[:, :, :, present[0]], onward.origin, False, digest)


def _require_meeting(heard: Channel, onward: Channel) -> None:
    if heard.link.shared or onward.link.shared:
        raise SettingError("relay is for pairs that read different texts; pooler=null reads one.")
    if heard.link.receiver is not onward.link.sharer:
        raise SettingError(
            "relay needs one model in the middle: load the second channel with "
            "Channel.from_pretrained(…, sharer=heard.link.receiver)."
        )
    if onward.prompts.send_tokens is not None:
        raise SettingError(
            f"send_tokens={onward.prompts.send_tokens} must be null for relay: all that is heard goes on."
        )


def _with_heard(spans: Tensor, slots: int) -> Tensor:
    """The spans of a cache whose first ``slots`` tokens were heard: each is one, then come those of what was read."""
    own = torch.where(spans >= 0, spans + slots, spans)
    return torch.cat([torch.arange(slots, device=spans.device).expand(len(spans), -1), own], dim=1)
