"""`Message`: what a sharer tells a receiver, as a value and on the wire (docs/message.md).

On the wire: magic (8 bytes), authentication tag (32), length of the header (4, little-endian), header (JSON), payload
(safetensors). Whatever arrives is checked in this order, and no tensor is made before all of it holds.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from lcf_lightning.binding import Binding, Inbox
from lcf_lightning.errors import MessageError, SettingError, unread
from lcf_lightning.files import require_regular, write_file
from lcf_lightning.header import Header
from lcf_lightning.models.spec import DTYPES
from lcf_lightning.origin import Origin
from lcf_lightning.wire import WIRE_DTYPES, decode, encode

MAGIC = b"LCFMSG\r\n"  # a transfer that takes it for text breaks it
MAX_BYTES = 64 * 2**20
"""Size limit of a message that arrives, unless another is given."""
MIN_KEY_BYTES = 16
_MAX_HEADER_BYTES = 4096
_BLOCK_BYTES = 1 << 20
_TAG = slice(len(MAGIC), len(MAGIC) + 32)
_UNSIGNED = bytes(32)
_FRAME = struct.Struct("<I")
_START = _TAG.stop + _FRAME.size  # of the header
Keys = bytes | Sequence[bytes]
"""A key, or several of which each is accepted, while one takes the place of another."""


@dataclass(frozen=True, eq=False, repr=False)
class Message:
    """What travels from a sharer to a receiver.

    Attributes:
        keys: ``[layers, 1, heads, spans, head_dim]``, float: a summary of each span of what the sharer has read, or,
            where both models read the same text, the sharer's cache at each of the receiver's tokens.
        values: The same shape and dtype.
        origin: The adapter and the pair it belongs to.
        pooled: Whether the spans are pooled already; such a message stands alone.
        prompt: A digest of what this was sent for: the receiver's tokens where both models read the same text, the
            question where the sharer was shown one; else None.
        binding: Whom and how long it is for; None for anybody, and for good.

    Raises:
        MessageError: If the tensors do not have that shape, or no common float dtype.
    """

    keys: Tensor
    values: Tensor
    origin: Origin
    pooled: bool = False
    prompt: str | None = None
    binding: Binding | None = None

    def __post_init__(self) -> None:
        origin, shape = self.origin, tuple(self.keys.shape)
        fits = len(shape) == 5 and (*shape[:3], shape[4]) == (origin.layers, 1, origin.heads, origin.head_dim)
        if not fits or shape[3] < 1 or shape != tuple(self.values.shape):
            raise MessageError(
                f"keys {shape} and values {tuple(self.values.shape)} of a message must both be [{origin.layers}, 1, "
                f"{origin.heads}, spans, {origin.head_dim}] with at least one span."
            )
        if self.keys.dtype != self.values.dtype or self.keys.dtype not in DTYPES.values():
            raise MessageError(
                f"keys ({self.keys.dtype}) and values ({self.values.dtype}) of a message must share one of "
                f"{', '.join(DTYPES)}."
            )

    def __repr__(self) -> str:
        """One line, without a number of the tensors."""
        of = f"{self.origin.layers} layers × {self.origin.heads} heads × {self.origin.head_dim}"
        dtype, pooled = str(self.keys.dtype).removeprefix("torch."), ", pooled" if self.pooled else ""
        bound = "" if self.binding is None else f", to {self.binding.to!r}"
        return f"Message({self.spans} spans, {of}, {dtype}{pooled}, adapter {self.origin.adapter[:8]}{bound})"

    @property
    def spans(self) -> int:
        """Spans, or, where both models read the same text, tokens."""
        return self.keys.shape[3]

    def to_bytes(self, dtype: str | None = None, key: bytes | None = None) -> bytes:
        """The message as it travels.

        Args:
            dtype: ``float32``, ``bfloat16``, ``float16``; ``int8`` or ``int4``, with a scale for each head's vector of
                each span; null for the message's own, which loses nothing.
            key: Authenticates the message (HMAC-SHA256): a secret of at least 16 bytes that both sides hold. A warning
                says where none is given and the message is bound.

        Raises:
            SettingError: If the dtype is unknown or the key too short.
            MessageError: If a value is not finite, or not in this dtype.
        """
        return self._written(dtype, key)

    def _written(self, dtype: str | None, key: bytes | None) -> bytes:
        """See `to_bytes`; a warning is of the line that called it, or `save`."""
        dtype = dtype or str(self.keys.dtype).removeprefix("torch.")
        if dtype not in WIRE_DTYPES:
            raise SettingError(f"dtype={dtype!r} of a message must be one of {', '.join(WIRE_DTYPES)}, or None.")
        if key is None and self.binding is not None:
            warnings.warn(
                "key=None, but this message is bound: for whom and how long can be changed on its way.", stacklevel=3
            )
        payload = encode(self.keys[:, 0], self.values[:, 0], dtype)
        header = Header(self.origin, self.binding, dtype, self.spans, self.pooled, self.prompt)
        head = header.to_json(sha256=header.digest(payload))
        body = _FRAME.pack(len(head)) + head + payload
        return MAGIC + (_UNSIGNED if key is None else _tag(key, body)) + body

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        key: Keys | None = None,
        origin: Origin | None = None,
        max_bytes: int = MAX_BYTES,
        *,
        inbox: Inbox | None = None,
        session: str | None = None,
    ) -> Message:
        """The message that `to_bytes` wrote, in the dtype it travelled in (int8 and int4 as float32).

        Args:
            data: What arrived.
            key: Where given, a message that neither this key nor one of these keys authenticates is refused. A warning
                says where none is given and the message was signed.
            origin: Where given, a message of another adapter or pair is refused; see `Channel.origin`.
            max_bytes: Longer data is refused unread.
            inbox: Where given, takes the message or refuses it by what it is bound to, see `Inbox`, which needs a key.
                A warning says where none is given and the message is bound.
            session: The session that the receiver is at; for ``inbox``.

        Raises:
            SettingError: If a key is too short, the limit is no number, ``inbox`` comes without a key, or it or
                ``origin`` is of another kind.
            MessageError: If anything is wrong with ``data``. No tensor has been made then.
        """
        return cls._read(data, key, origin, max_bytes, inbox, session)

    def save(self, path: str | Path, dtype: str | None = None, key: bytes | None = None) -> None:
        """Write `to_bytes` to a file: aside, then renamed."""
        data = self._written(dtype, key)
        write_file(Path(path), lambda aside: aside.write_bytes(data))

    @classmethod
    def load(
        cls,
        path: str | Path,
        key: Keys | None = None,
        origin: Origin | None = None,
        max_bytes: int = MAX_BYTES,
        *,
        inbox: Inbox | None = None,
        session: str | None = None,
    ) -> Message:
        """Read the file that `save` wrote; see `from_bytes`.

        Raises:
            MessageError: If there is no such file, or anything is wrong with it.
        """
        _require_limit(max_bytes)
        try:
            require_regular(Path(path))
            with Path(path).open("rb") as file:
                data = _blocks(file, max_bytes + 1)  # one more, so that a longer file is refused
        except (OSError, ValueError) as error:  # a path may be none
            raise MessageError(f"message file {str(path)!r} cannot be read: {unread(error)}.") from error
        return cls._read(data, key, origin, max_bytes, inbox, session)

    @classmethod
    def _read(
        cls,
        data: bytes,
        key: Keys | None,
        origin: Origin | None,
        max_bytes: int,
        inbox: Inbox | None,
        session: str | None,
    ) -> Message:
        """See `from_bytes`; a warning is of the line that called it, or `load`."""
        if inbox is not None and key is None:
            raise SettingError("inbox= must come with key=: without one anybody can write what a message is bound to.")
        if session is not None and inbox is None:
            raise SettingError(f"session={session!r:.140} must come with inbox=, which compares it.")
        for name, value, kind in (("origin", origin, Origin), ("inbox", inbox, Inbox)):
            if value is not None and not isinstance(value, kind):
                raise SettingError(f"{name}= must be an {kind.__name__}, not {type(value).__name__}.")
        header, payload = _unframed(data, key, max_bytes)
        if origin is not None:
            header.origin.require(origin)
        if inbox is not None:
            inbox.admit(header.binding, session)
        elif key is None and any(data[_TAG]):
            warnings.warn("key=None, but this message is signed: who wrote it has not been checked.", stacklevel=3)
        if inbox is None and header.binding is not None:
            warnings.warn("inbox=None, but this message is bound: for whom and how long was not checked.", stacklevel=3)
        keys, values = (side.unsqueeze(1) for side in decode(payload, header.dtype, header.shape))
        return cls(keys, values, header.origin, header.pooled, header.prompt, header.binding)


def _blocks(file: BinaryIO, most: int) -> bytes:
    """Up to ``most`` bytes, in blocks: who asks for many at once is given memory for many."""
    blocks, found = [], 0
    while found < most and (block := file.read(min(_BLOCK_BYTES, most - found))):
        blocks.append(block)
        found += len(block)
    return b"".join(blocks)


def _require_limit(max_bytes: int) -> None:
    if type(max_bytes) is not int or max_bytes < 0:
        raise SettingError(f"max_bytes={max_bytes!r} must be a whole number of at least 0.")


def _tag(key: bytes, body: bytes | memoryview) -> bytes:
    """What authenticates a message."""
    tag = hmac.new(_key(key), MAGIC, hashlib.sha256)
    tag.update(body)
    return tag.digest()


def _key(key: object) -> bytes:
    """The key, if it is one."""
    if not isinstance(key, bytes) or len(key) < MIN_KEY_BYTES:
        kind = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise SettingError(f"key of a message must be at least {MIN_KEY_BYTES} bytes, not {kind}.")
    return key


def _several(key: Keys) -> list[bytes]:
    """The keys that are accepted."""
    if isinstance(key, list | tuple) and not key:
        raise SettingError("key=[] of a message must hold a key at least.")
    return [_key(each) for each in (key if isinstance(key, list | tuple) else [key])]


def _unframed(data: bytes, key: Keys | None, max_bytes: int) -> tuple[Header, memoryview]:
    """Header and payload, if size, tag, lengths and digest hold."""
    if not isinstance(data, bytes):
        raise MessageError(f"a message must be bytes, not {type(data).__name__}.")
    _require_limit(max_bytes)
    if len(data) > max_bytes:
        raise MessageError(f"message exceeds max_bytes={max_bytes}.")
    if not data.startswith(MAGIC) or len(data) < _START:
        raise MessageError("these bytes are no message, or its first few only.")
    view = memoryview(data)
    body = view[_TAG.stop :]
    if key is not None and not any(hmac.compare_digest(_tag(each, body), data[_TAG]) for each in _several(key)):
        raise MessageError("message is not authenticated by this key: another key, none, or it was changed on the way.")
    (length,) = _FRAME.unpack(body[: _FRAME.size])
    if length > min(_MAX_HEADER_BYTES, len(data) - _START):
        raise MessageError(f"message header of {length} bytes is cut off, or longer than {_MAX_HEADER_BYTES}.")
    (header, digest), payload = Header.from_json(data[_START : _START + length]), view[_START + length :]
    if header.digest(payload) != digest:
        raise MessageError("message payload or header is cut off or damaged: the digest is another.")
    return header, payload
