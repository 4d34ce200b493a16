"""`Binding` and `Inbox`: whom a message is for, in which session and until when; and that it is read once.

The clock is that of the wall (`time.time`, Unix time): a message travels between machines, which share no other.
"""

from __future__ import annotations

import heapq
import math
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lcf_lightning.errors import MessageError, SettingError

LONGEST = 24 * 3600
"""Seconds that a bound message may live: as long as its nonce must be remembered."""
MOST = 2**16
"""Nonces that an `Inbox` remembers."""
_NAME = re.compile("[ -~]{1,128}")
Clock = Callable[[], float]
"""Gives the Unix time in seconds; another than `time.time` is for tests."""


@dataclass(frozen=True)
class Binding:
    """Whom and how long a message is for. It travels in the header, so a key authenticates it with all the rest.

    Attributes:
        to: The recipient's name; None for whoever reads it.
        session: What sharer and receiver call what they are at; None for nothing.
        expires: From this second on (Unix time) it is not to be read.
        nonce: 128 random bits, in hexadecimal, which no other message has.
    """

    to: str | None
    session: str | None
    expires: int
    nonce: str


def bound(
    to: str | None = None, session: str | None = None, expires: float | None = None, clock: Clock = time.time
) -> Binding | None:
    """The binding of a new message that lives ``expires`` seconds from now; None where nothing is asked for.

    Raises:
        SettingError: If a name is none, or the message would not expire within `LONGEST`.
    """
    if to is None and session is None and expires is None:
        return None
    for setting, name in (("to", to), ("session", session)):
        if name is not None and not is_name(name):
            raise SettingError(f"{setting}={name!r:.140} must be 1 to 128 printable ASCII characters, or None.")
    number = isinstance(expires, int | float) and not isinstance(expires, bool)
    if expires is None or not number or not 0 < expires <= LONGEST:
        raise SettingError(
            f"expires={expires!r:.40} of a message with a recipient, a session or an expiry must be seconds from now, "
            f"above 0 and at most {LONGEST}."
        )
    return Binding(to, session, math.ceil(clock() + expires), secrets.token_hex(16))


def is_name(value: object) -> bool:
    """Whether this may name a recipient or a session."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


class Inbox:
    """What one receiver takes: messages for it, of the session it is at, that have not expired, each of them once.

    It remembers the nonce of each until that message expires. What it has read before a restart it does not know: draw
    a new session then, or for each request. Threads may share one.

    Args:
        to: The receiver's name: messages must be for it; None for those without a recipient.
        most: Nonces that are remembered; a message beyond is refused until an earlier one has expired.
        clock: Gives the Unix time in seconds. Where it goes back, the latest time that was seen holds.

    Raises:
        SettingError: If the name is none, or the number no whole one of at least 1.
    """

    def __init__(self, to: str | None = None, most: int = MOST, clock: Clock = time.time) -> None:
        if to is not None and not is_name(to):
            raise SettingError(f"to={to!r:.140} must be 1 to 128 printable ASCII characters, or None.")
        if type(most) is not int or most < 1:
            raise SettingError(f"most={most!r:.40} must be a whole number of at least 1.")
        self.to, self._most, self._clock = to, most, clock
        self._latest = -math.inf
        self._seen: set[str] = set()
        self._expiring: list[tuple[int, str]] = []  # a heap: the next to be forgotten first
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """One line, without a nonce."""
        return f"Inbox(to={self.to!r}, {len(self._seen)} of {self._most} nonces)"

    def admit(self, binding: Binding | None, session: str | None) -> None:
        """Take a message that is to be read now, and remember it.

        Raises:
            MessageError: If it is not bound, is for another recipient or session, has expired or lives too long, has
                been read before, or more are remembered than may be.
        """
        if binding is None:
            raise MessageError("message is not bound, and this inbox takes bound ones: send(…, expires=SECONDS).")
        for name, said, expected in (("to", binding.to, self.to), ("session", binding.session, session)):
            if said != expected:
                raise MessageError(f"message of {name}={said!r}, expected {expected!r}.")
        with self._lock:
            now = self._latest = max(self._latest, self._clock())
            while self._expiring and self._expiring[0][0] <= now:
                self._seen.discard(heapq.heappop(self._expiring)[1])
            left = binding.expires - now
            if not 0 < left <= LONGEST + 1:  # it was rounded up to a second
                raise MessageError(
                    f"message has expired: {-left:.0f} s ago by the clock of this machine."
                    if left <= 0
                    else f"message expires in {left:.0f} s by the clock of this machine, more than {LONGEST}."
                )
            if binding.nonce in self._seen:
                raise MessageError("message has been read before: its nonce is known.")
            if len(self._seen) >= self._most:
                raise MessageError(f"inbox is full: {self._most} messages that it has read have not expired yet.")
            self._seen.add(binding.nonce)
            heapq.heappush(self._expiring, (binding.expires, binding.nonce))
