"""Messages for one receiver, one session and a while, that are read once; and keys that take each other's place."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import Inbox, Message
from lcf_lightning.binding import LONGEST, Binding, bound
from lcf_lightning.errors import SettingError
from tests.message.making import KEY, OTHER_KEY, message, origin, parts, refuses, resigned, same

NOW = 1_900_000_000.25


class Clock:
    """A wall clock that stands still until it is told to go."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sent(to: str | None = "bob", session: str | None = "s1", expires: float = 60, now: float = NOW) -> Message:
    return replace(message(), binding=bound(to, session, expires, clock=lambda: now))


def read(data: bytes, inbox: Inbox, session: str | None = "s1") -> Message:
    return Message.from_bytes(data, KEY, origin(), inbox=inbox, session=session)


def test_a_bound_message_comes_as_it_was_sent(tmp_path: Path) -> None:
    one, path = sent(), tmp_path / "a.message"
    found = read(one.to_bytes(key=KEY), Inbox("bob", clock=Clock()))
    assert same(found, one)
    assert found.binding == one.binding == Binding("bob", "s1", math.ceil(NOW) + 60, one.binding.nonce)
    one.save(path, key=KEY)
    assert Message.load(path, KEY, inbox=Inbox("bob", clock=Clock()), session="s1").binding == one.binding
    alone = sent(None, None)
    assert read(alone.to_bytes(key=KEY), Inbox(clock=Clock()), None).binding == alone.binding


def test_a_bound_message_that_is_not_signed_is_warned_of(tmp_path: Path) -> None:
    one = sent()
    for write in (one.to_bytes, lambda: one.save(tmp_path / "a.message")):
        with pytest.warns(UserWarning, match="key=None, but this message is bound: for whom and how lo") as warned:
            write()
        assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        one.to_bytes(key=KEY)
        message().to_bytes()


def test_what_is_not_bound_travels_as_before() -> None:
    header, _ = parts(message().to_bytes())
    assert header["format"] == 1
    assert not {"to", "session", "expires", "nonce"} & header.keys()
    assert parts(sent().to_bytes())[0].keys() - header.keys() == {"to", "session", "expires", "nonce"}


def test_a_message_is_read_once_as_long_as_it_lives() -> None:
    clock = Clock()
    inbox, one = Inbox("bob", clock=clock), sent()
    data = one.to_bytes(key=KEY)
    read(data, inbox)
    for other in (data, one.to_bytes("int8", KEY)):  # the same message, in another dtype
        with refuses("message has been read before: its nonce is known"):
            read(other, inbox)
    assert read(sent().to_bytes(key=KEY), inbox).binding != one.binding
    clock.now = NOW + 59
    with refuses("read before"):
        read(data, inbox)
    clock.now = math.ceil(NOW) + 60
    with refuses("message has expired: 0 s ago by the clock of this machine"):
        read(data, inbox)
    clock.now = NOW  # which has gone back: the latest that was seen holds
    with refuses("message has expired"):
        read(data, inbox)


def test_a_refused_message_can_still_be_read_where_it_belongs() -> None:
    data, inbox = sent().to_bytes(key=KEY), Inbox("bob", clock=Clock())
    for wrong, session, match in (
        (Inbox("eve", clock=Clock()), "s1", "message of to='bob', expected 'eve'"),
        (Inbox(clock=Clock()), "s1", "message of to='bob', expected None"),
        (inbox, "s2", "message of session='s1', expected 's2'"),
        (inbox, None, "message of session='s1', expected None"),
        (Inbox("bob", clock=Clock(NOW + 61)), "s1", "message has expired"),
        (Inbox("bob", clock=Clock(NOW - LONGEST)), "s1", f"message expires in 86[0-9]{{3}} s .* more than {LONGEST}"),
    ):
        with refuses(match):
            read(data, wrong, session)
    read(data, inbox)
    with refuses("message of session=None, expected 's1'"):
        read(sent(session=None).to_bytes(key=KEY), inbox)
    with refuses("message is not bound, and this inbox takes bound ones"):
        read(message().to_bytes(key=KEY), inbox)


def test_an_inbox_remembers_so_many_and_forgets_what_has_expired() -> None:
    clock = Clock()
    inbox = Inbox("bob", most=2, clock=clock)
    read(sent(expires=10).to_bytes(key=KEY), inbox)
    long = sent(expires=90).to_bytes(key=KEY)
    read(long, inbox)
    third = sent(expires=60).to_bytes(key=KEY)
    with refuses("inbox is full: 2 messages that it has read have not expired yet"):
        read(third, inbox)
    assert repr(inbox) == "Inbox(to='bob', 2 of 2 nonces)"
    clock.now += 11  # the first has expired
    read(third, inbox)
    with refuses("read before"):
        read(long, inbox)


def test_nothing_of_a_binding_can_be_changed_without_the_key() -> None:
    data, inbox = sent().to_bytes(key=KEY), Inbox("eve", clock=Clock())
    for changed in ({"to": "eve"}, {"expires": math.ceil(NOW) + 600}, {"nonce": "0" * 32}, {"session": "s2"}):
        with refuses("not authenticated by this key"):
            read(resigned(data, OTHER_KEY, **changed), inbox)
    with refuses("damaged: the digest is another"):
        Message.from_bytes(data.replace(b'"bob"', b'"eve"'))
    for key in (None, ()):
        with pytest.raises(SettingError, match=r"inbox= must come with key=|key=\[\] .* must hold a key"):
            Message.from_bytes(data, key, inbox=inbox)
    with pytest.raises(SettingError, match="session='s1' must come with inbox="):
        Message.from_bytes(data, KEY, session="s1")


def test_a_bound_message_that_is_read_without_an_inbox_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="inbox=None, but this message is bound") as warned:
        Message.from_bytes(sent().to_bytes(key=KEY), KEY)
    assert [warning.filename for warning in warned] == [__file__]


WRONG_NAMES: tuple[Any, ...] = ("", "a" * 129, "a\n", "ä", "\x1b[2J", 5, b"bob")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("to", WRONG_NAMES[:-1]), ("session", WRONG_NAMES[:-1]), ("expires", (0, 2**40 + 1, 1.5, None, True, "60")),
        ("nonce", ("", None, "g" * 32, "a" * 33, 7)), ("format", (1,)),
    ],
)  # fmt: skip
def test_a_header_binds_by_fields_of_their_kind(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with refuses(f"message header: {name}=.{{1,40}} is not allowed|must hold exactly"):
            Message.from_bytes(resigned(sent().to_bytes(), KEY, **{name: value}), KEY)


@pytest.mark.parametrize("expires", [None, 0, -1, LONGEST + 1, math.nan, math.inf, True, "60"])
def test_what_cannot_be_bound_is_named(expires: Any) -> None:
    with pytest.raises(SettingError, match=r"expires=.* must be seconds from now, above 0 and at most 86400"):
        bound("bob", None, expires)
    for name in WRONG_NAMES:
        for settings in ({"to": name}, {"session": name}):
            with pytest.raises(SettingError, match=r"(to|session)=.* must be 1 to 128 .* characters, or None"):
                bound(**settings, expires=60)
        with pytest.raises(SettingError, match="to=.* must be 1 to 128"):
            Inbox(name)
    for most in (0, 1.5, True):
        with pytest.raises(SettingError, match="most=.* must be a whole number of at least 1"):
            Inbox(most=most)  # type: ignore[arg-type]
    assert bound() is None


def test_the_clock_is_that_of_the_wall() -> None:
    before = time.time()
    found = bound(expires=0.5)
    assert found is not None
    assert before + 0.5 <= found.expires <= time.time() + 1.5
    data = replace(message(), binding=found).to_bytes(key=KEY)
    assert read(data, Inbox(), None).binding == found


def test_keys_take_each_others_place() -> None:
    """Receivers accept both before the sharers sign with the new one, and the old one for as long as messages live."""
    by_old, by_new = message().to_bytes(key=OTHER_KEY), message().to_bytes(key=KEY)
    for keys in ([KEY, OTHER_KEY], (OTHER_KEY, KEY)):
        assert same(Message.from_bytes(by_old, keys), Message.from_bytes(by_new, keys))
    for keys in ([KEY], KEY, [KEY, b"one more, of none"]):
        with refuses("not authenticated by this key"):
            Message.from_bytes(by_old, keys)
    for keys, what in (([OTHER_KEY, b"abc"], "3 bytes"), ([None], "NoneType"), ([KEY, None], "NoneType")):
        for data in (by_old, message().to_bytes()):  # nor is nothing a key that unsigned messages have
            with pytest.raises(SettingError, match=f"must be at least 16 bytes, not {what}"):
                Message.from_bytes(data, keys)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="must be at least 16 bytes, not list"):
        message().to_bytes(key=[KEY])  # type: ignore[arg-type]  # one signs


def test_no_tensor_and_no_nonce_is_shown() -> None:
    one, inbox = sent(), Inbox("bob", clock=Clock())
    read(one.to_bytes(key=KEY), inbox)
    assert repr(one) == "Message(3 spans, 3 layers × 2 heads × 4, float32, adapter a0a0a0a0, to 'bob')"
    assert one.binding is not None
    assert one.binding.nonce not in repr(inbox)


def test_what_checks_a_message_must_be_what_can() -> None:
    data = sent().to_bytes(key=KEY)
    for given, why in (
        ({"origin": "channel"}, "origin= must be an Origin, not str"),
        ({"inbox": "bob"}, "an Inbox, not"),
    ):
        with pytest.raises(SettingError, match=why):
            Message.from_bytes(data, KEY, **given)  # type: ignore[arg-type]
