"""`Origin`: whose a message is."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lcf_lightning.errors import MessageError


@dataclass(frozen=True)
class Origin:
    """Whose messages these are: sharer and receiver agree on all of it, or the message is refused.

    Attributes:
        adapter: The adapter's fingerprint.
        sharer: Fingerprint of the sharer's weights; None where the adapter does not know it.
        receiver: The same of the receiver.
        layers: Edited layers.
        heads: The sharer's KV heads.
        head_dim: The sharer's head size.
    """

    adapter: str
    sharer: str | None
    receiver: str | None
    layers: int
    heads: int
    head_dim: int

    def require(self, expected: Origin) -> None:
        """Raise a MessageError that names what differs from ``expected``, if anything does.

        A model whose fingerprint ``expected`` does not know may be any; one that it knows may not be unknown here.
        """
        differing = [f"{name}={mine!r}, expected {theirs!r}" for name, mine, theirs in self._differing(expected)]
        if differing:
            raise MessageError(f"message of another adapter or pair: {'; '.join(differing)}.")

    def fits(self, expected: Origin) -> bool:
        """Whether `require` would let it pass."""
        return not self._differing(expected)

    def _differing(self, expected: Origin) -> list[tuple[str, str | int | None, str | int | None]]:
        pairs = [(field.name, getattr(self, field.name), getattr(expected, field.name)) for field in fields(self)]
        return [each for each in pairs if not _agree(*each)]


def _agree(name: str, found: str | int | None, expected: str | int | None) -> bool:
    """Whether both are the same, as far as it is known whose weights are expected."""
    return found == expected or (name in ("sharer", "receiver") and expected is None)
