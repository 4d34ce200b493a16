"""`Header`: what a message says of itself on the wire, as JSON, and the digest of it and its payload."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from lcf_lightning.binding import Binding, is_name
from lcf_lightning.digests import is_digest
from lcf_lightning.errors import MessageError
from lcf_lightning.origin import Origin
from lcf_lightning.wire import WIRE_DTYPES

FORMATS = (1, 2)
"""Of a message, and of one with a `Binding`: its fields stand beside the others."""
_MAX_COUNT = 2**20  # of layers, heads, spans, and a head's size
_MAX_TIME = 2**40


@dataclass(frozen=True)
class Header:
    """All that a message says but its tensors; see `Message`."""

    origin: Origin
    binding: Binding | None
    dtype: str
    spans: int
    pooled: bool
    prompt: str | None

    def to_json(self, **more: str) -> bytes:
        """As it travels, the fields of origin and binding among the others."""
        own = asdict(self)
        origin, binding = own.pop("origin"), own.pop("binding")
        version = FORMATS[binding is not None]
        return json.dumps({"format": version, **own, **origin, **(binding or {}), **more}, sort_keys=True).encode()

    def digest(self, payload: bytes | memoryview) -> str:
        """SHA-256 of header and payload."""
        found = hashlib.sha256(self.to_json())
        found.update(payload)
        return found.hexdigest()

    @classmethod
    def from_json(cls, text: bytes) -> tuple[Header, str]:
        """The header and the digest that it names; raise a MessageError unless ``text`` holds exactly its fields."""
        try:
            given = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise MessageError("message header is no JSON.") from error
        version = given.get("format") if isinstance(given, dict) else None
        if version not in FORMATS:
            raise MessageError(f"message format={version!r:.40} is unknown; this release reads 1 and 2.")
        own = [name for name in _names(cls) if name not in ("origin", "binding")]
        bound = version == FORMATS[1]
        names = {"format", "sha256", *own, *_names(Origin), *(_names(Binding) if bound else ())}
        if given.keys() != names:
            raise MessageError(f"message header must hold exactly {', '.join(sorted(names))}.")
        wrong = [name for name, value in given.items() if not _allowed(name, value)]
        if wrong:
            raise MessageError(f"message header: {wrong[0]}={given[wrong[0]]!r:.40} is not allowed.")
        origin = Origin(**{name: given[name] for name in _names(Origin)})
        binding = Binding(**{name: given[name] for name in _names(Binding)}) if bound else None
        return cls(origin, binding, **{name: given[name] for name in own}), given["sha256"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of keys and values, without the batch."""
        return self.origin.layers, self.origin.heads, self.spans, self.origin.head_dim


def _names(of: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(of))


def _allowed(name: str, value: Any) -> bool:
    """Whether a header's field may have this value."""
    if name in ("layers", "heads", "head_dim", "spans", "format"):
        return type(value) is int and 1 <= value <= _MAX_COUNT
    if name == "expires":
        return type(value) is int and 1 <= value <= _MAX_TIME
    if name == "pooled":
        return type(value) is bool
    if name == "dtype":
        return isinstance(value, str) and value in WIRE_DTYPES
    if value is None:
        return name in ("sharer", "receiver", "prompt", "to", "session")
    if name in ("to", "session"):
        return is_name(value)
    if name == "sha256":
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    return is_digest(value)
