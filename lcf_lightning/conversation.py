"""`State`: a conversation between two turns, as a value and as a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lcf_lightning.data.controls import Said
from lcf_lightning.data.prompts import Earlier
from lcf_lightning.digests import tensors_digest
from lcf_lightning.errors import DataError, MessageError, SessionError, SettingError, unread
from lcf_lightning.files import require_regular, write_file
from lcf_lightning.message import Message
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.spec import DTYPES
from lcf_lightning.origin import Origin
from lcf_lightning.typed import from_table, parse_json

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel

FORMAT_VERSION = 1


class Told(NamedTuple):
    """Messages that were heard together in a turn.

    Attributes:
        at: How many of the chat's own tokens stand before them.
        own: How many of these were read in that turn.
        slots: How many tokens they are in the cache themselves; 0 where they edit that turn's.
        messages: The messages, each with the digest by which it is known again.
    """

    at: int
    own: int
    slots: int
    messages: tuple[tuple[str, Message], ...]

    def remains(self, read: int) -> bool:
        """Whether they can still be heard where only the first ``read`` own tokens of the chat are kept.

        That is whether they are kept themselves, or at least half of the tokens that they edit.
        """
        return read >= self.at + (0 if self.slots else (self.own + 1) // 2)


@dataclass(frozen=True)
class State:
    """A conversation between two turns.

    Attributes:
        turns: What was said.
        ids: The chat's own tokens that are in the cache, without those of messages.
        told: What was heard, in the order of the places.
        cache: What the receiver remembers; null before the first turn.
    """

    turns: Earlier = ()
    ids: tuple[int, ...] = ()
    told: tuple[Told, ...] = ()
    cache: KVCache | None = None


def known_by(message: Message) -> str:
    """A digest of what a message says: its keys and values, bit for bit, and whether they are pooled."""
    return tensors_digest({"keys": message.keys, "values": message.values, "pooled": torch.tensor(message.pooled)})


def slots_of(told: tuple[Told, ...]) -> int:
    """How many tokens of a cache are those of messages."""
    return sum(each.slots for each in told)


@dataclass(frozen=True)
class _Stretch:
    text: str
    outside: bool  # and not of a template


@dataclass(frozen=True)
class _Turn:
    question: str | None
    said: tuple[_Stretch, ...]  # instead of a question
    answer: str


@dataclass(frozen=True)
class _Sent:
    pooled: bool
    prompt: str | None


@dataclass(frozen=True)
class _Heard:
    at: int
    own: int
    slots: int
    messages: tuple[_Sent, ...]


@dataclass(frozen=True)
class _File:
    """What stands in a file beside the tensors, as JSON."""

    format: int
    origin: Origin
    receiver: str
    turns: tuple[_Turn, ...]
    told: tuple[_Heard, ...]


def write_state(channel: Channel, state: State, path: Path) -> None:
    """Write a conversation to a file: aside, then renamed; see `Session.save`."""
    if state.cache is None:
        raise DataError("this session has no turn yet that could be saved.")
    told = [_Heard(*each[:3], tuple(_Sent(m.pooled, m.prompt) for _, m in each.messages)) for each in state.told]
    turns = tuple(_as_facts(*turn) for turn in state.turns)
    facts = _File(FORMAT_VERSION, channel.origin, channel.link.receiver.fingerprint, turns, tuple(told))
    text = json.dumps(asdict(facts))
    try:
        parse_json(text.encode())
    except SettingError as error:
        raise DataError(f"what was said in this session could not be read again: {error}") from error
    sides = {"keys": torch.cat(state.cache.keys), "values": torch.cat(state.cache.values)}
    tensors = {"ids": torch.tensor(state.ids), **sides}
    for name, message in _named(state.told):
        tensors |= {f"{name}.keys": message.keys, f"{name}.values": message.values}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, {"session": text, "digest": _digest(tensors, text)})
    write_file(path, lambda aside: aside.write_bytes(content))


def read_state(channel: Channel, path: Path) -> State:
    """The conversation of a file that `write_state` wrote; see `Session.load`."""
    try:
        facts, tensors = _read(path)
        if facts.format != FORMAT_VERSION:
            raise SessionError(f"has format={facts.format}; this release reads {FORMAT_VERSION}")
        facts.origin.require(channel.origin)
        if facts.receiver != (held := channel.link.receiver.fingerprint):
            raise SessionError(f"is of a receiver with the weights {facts.receiver!r:.40}, and here they are {held!r}")
        return _restored(channel, facts, tensors)
    except MessageError as error:
        raise SessionError(f"session file {str(path)!r}: {error}") from error
    except SessionError as error:
        raise SessionError(f"session file {str(path)!r} {str(error).removesuffix('.')}.") from error


def _read(path: Path) -> tuple[_File, dict[str, Tensor]]:
    """What a file holds, if it is whole."""
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as stored:
            notes = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:  # a path may be none
        raise SessionError(f"cannot be read: {unread(error)}") from error
    if not (notes.get("session") and "digest" in notes):
        raise SessionError("is none that a session has written")
    if _digest(tensors, notes["session"]) != notes["digest"]:
        raise SessionError("is damaged: its digest is another")
    try:
        return from_table(_File, parse_json(notes["session"].encode()), "session"), tensors
    except SettingError as error:
        raise SessionError(f"is damaged: {error}") from error


def _restored(channel: Channel, facts: _File, tensors: dict[str, Tensor]) -> State:
    """The conversation, if the tensors are exactly those that go with the facts, and fit the receiver."""
    receiver, origin = channel.link.receiver, channel.origin
    geometry, dtype = receiver.geometry, DTYPES[receiver.spec.dtype]
    names = [f"told.{turn}.{place}" for turn, each in enumerate(facts.told) for place in range(len(each.messages))]
    sides = {f"{name}.{side}" for name in names for side in ("keys", "values")}
    if tensors.keys() != {"ids", "keys", "values"} | sides:
        raise SessionError("is damaged: it does not hold exactly the tensors of its session")
    ids, keys, values = (tensors[name] for name in ("ids", "keys", "values"))
    others = {tensor.dtype for name, tensor in tensors.items() if name != "ids"}
    if ids.dim() != 1 or ids.dtype != torch.int64 or not others <= set(DTYPES.values()):
        raise SessionError("is damaged: its tensors do not fit its session")
    if keys.dtype != dtype or keys.dtype != values.dtype:
        raise SessionError(f"was kept in {keys.dtype}, and the receiver is held in {dtype} here")
    tokens = len(ids) + sum(each.slots for each in facts.told)
    shape = (geometry.layers, geometry.kv_heads, tokens, geometry.head_dim)
    fits = tuple(keys.shape) == tuple(values.shape) == shape
    finite = all(bool(tensors[name].isfinite().all()) for name in tensors)
    known = fits and len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < receiver.config.vocab_size
    placed = all(min(each.at, each.slots) >= 0 and each.own > 0 and each.at <= len(ids) for each in facts.told)
    if not (fits and finite and known and placed and facts.turns):
        raise SessionError("is damaged: its tensors do not fit its session, or the receiver")
    told = []
    for turn, each in enumerate(facts.told):
        pairs = [(tensors[f"told.{turn}.{place}.keys"], tensors[f"told.{turn}.{place}.values"])
                 for place in range(len(each.messages))]  # fmt: skip
        sent = [
            Message(*pair, origin, note.pooled, note.prompt) for pair, note in zip(pairs, each.messages, strict=True)
        ]
        told.append(Told(each.at, each.own, each.slots, tuple((known_by(message), message) for message in sent)))
    turns = tuple((_said(turn) if turn.question is None else turn.question, turn.answer) for turn in facts.turns)
    cached = [tuple(side.unsqueeze(1).to(receiver.device)) for side in (keys, values)]
    mask = torch.ones(1, tokens, dtype=torch.bool, device=receiver.device)
    return State(turns, tuple(ids.tolist()), tuple(told), KVCache(cached[0], cached[1], mask))


def _as_facts(said: str | tuple[str, ...], answer: str) -> _Turn:
    if isinstance(said, str):
        return _Turn(said, (), answer)
    return _Turn(None, tuple(_Stretch(str(text), isinstance(text, Said)) for text in said), answer)


def _said(turn: _Turn) -> tuple[str, ...]:
    return tuple(Said(part.text) if part.outside else part.text for part in turn.said)


def _named(told: tuple[Told, ...]) -> list[tuple[str, Message]]:
    """Every message, and what its tensors are called in a file."""
    return [
        (f"told.{turn}.{place}", message)
        for turn, each in enumerate(told)
        for place, (_, message) in enumerate(each.messages)
    ]


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """Against decay and cut files, not against an attacker."""
    return tensors_digest({**tensors, "session": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})
