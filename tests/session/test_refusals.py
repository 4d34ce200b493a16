"""What a session refuses, and that a turn which fails leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lcf_lightning import Channel, Message
from lcf_lightning.errors import DataError, GeometryError, MessageError, SettingError
from tests.session.conftest import FACTS, digits

Made = Callable[..., Channel]


def test_a_turn_that_ends_early_leaves_no_trace(made: Made) -> None:
    channel = made("qwen3", "prefix")
    message, session = channel.send(FACTS), channel.session()
    session.ask("who ?", **digits(channel))
    state = session.state
    stream = session.ask("and ?", (), message, stream=True, **digits(channel))
    next(stream)
    stream.close()
    broken = Message(message.keys * torch.inf, message.values, message.origin)
    with pytest.raises(MessageError, match="not finite"):
        session.ask("and ?", (), broken)
    assert session.state is state


def test_two_turns_at_once_are_refused(made: Made) -> None:
    channel = made("qwen3", "prefix")
    session = channel.session()
    stream = session.ask("who ?", stream=True, **digits(channel))
    session.ask("and ?", **digits(channel))
    with pytest.raises(DataError, match="another turn of this session has ended while this one was answered"):
        list(stream)
    assert len(session.turns) == 1


def test_a_message_of_a_text_that_both_read_is_for_the_first_turn(made: Made) -> None:
    channel = made("qwen3", None)
    message, session = channel.send(FACTS, "who ?"), channel.session()
    first = session.ask("who ?", FACTS, message, **digits(channel))
    assert first.text == channel.receive(message, "who ?", FACTS, **digits(channel)).text
    with pytest.raises(MessageError, match="message after the first turn of a session: where both models read the"):
        session.ask("and ?", (), message)
    assert session.ask("and ?", **digits(channel)).text.isdigit()


def test_a_turn_beyond_a_limit_of_training_is_refused(made: Made) -> None:
    channel = made("qwen3", "prefix", max_receiver_tokens=40)
    session = channel.session()
    with pytest.raises(DataError, match="max_receiver_tokens=40, as in training, leaves out 1 spans of this turn, and"):
        session.ask("who ?", FACTS)
    for _ in range(3):  # each turn is within it, the chat need not be
        session.ask("who ?", FACTS[:1], **digits(channel))
    assert session.tokens > 60


def test_a_chat_longer_than_the_receiver_can_see_is_refused(made: Made) -> None:
    channel = made("qwen3", "prefix")
    message, session = channel.send(FACTS), channel.session()
    answer = session.ask("who ?", **digits(channel))
    channel.link.receiver.config.max_position_embeddings = 2 * answer.prompt_tokens + 10
    session.ask("who ?", **digits(channel))
    with pytest.raises(GeometryError, match=r"this session would be \d+ tokens long, and '.*' was made to read"):
        session.ask("who ?", (), message)


def test_pooled_messages_stand_alone_in_each_turn(made: Made) -> None:
    channel = made("qwen3", "span")
    session = channel.session()
    session.ask("who ?", (), channel.send(FACTS, pooled=True), **digits(channel))
    session.ask("and ?", (), channel.send(FACTS[:1], pooled=True), **digits(channel))
    assert [len(told.messages) for told in session.state.told] == [1, 1]
    both = [channel.send(FACTS, pooled=True), channel.send(FACTS)]
    with pytest.raises(MessageError, match="a pooled message stands alone"):
        session.ask("and ?", (), both)


def test_a_session_needs_a_receiver(made: Made) -> None:
    channel = made("qwen3", "prefix")
    alone = Channel(channel.link.sharer, None, channel.adapter)
    with pytest.raises(SettingError, match="this channel has no receiver"):
        alone.session()


@pytest.mark.parametrize("pooler", ["prefix", "carry"])
@pytest.mark.parametrize("spans", ["paragraph", "sentence"])
def test_what_is_new_since_is_the_rest_of_the_whole_message(made: Made, pooler: str, spans: str) -> None:
    channel = made("qwen3", pooler, spans=spans)
    text = ["Ada likes tea. Ben owns it.", "Cleo seeks ruby.", "Dan sells soup. It is hot."]
    old, whole, rest = channel.send(text[:2]), channel.send(text), channel.send(text, since=text[:2])
    assert 0 < rest.spans < whole.spans
    for ours, theirs in ((rest.keys, whole.keys), (rest.values, whole.values)):
        torch.testing.assert_close(ours, theirs[:, :, :, -rest.spans :], atol=1e-5, rtol=1e-5)
    if pooler == "prefix":
        assert old.spans + rest.spans == whole.spans
    session = channel.session()
    session.ask("who ?", (), old, **digits(channel))
    session.ask("and ?", (), rest, **digits(channel))
    assert sum(told.slots for told in session.state.told) == old.spans + rest.spans


def test_since_is_refused_where_it_means_nothing(made: Made) -> None:
    channel = made("qwen3", "prefix")
    with pytest.raises(DataError, match="since= must be what the passages begin with"):
        channel.send(FACTS, since=FACTS[1:])
    with pytest.raises(TypeError, match="since"):  # it would be of the first text alone
        channel.send_batch([FACTS, FACTS], since=FACTS[:1])
    with pytest.raises(DataError, match="at least one passage that is new"):
        channel.send(FACTS, since=FACTS)
    for pooler, prompts, why in (
        ("span", {}, "with pooler=span: all spans together"),
        (None, {}, "with pooler=null: all spans"),
        ("prefix", {"share_question": True}, "where the sharer is shown the question"),
        ("prefix", {"spans": "window:4"}, "with spans='window:4'"),
    ):
        channel = made("qwen3", pooler, **prompts)
        with pytest.raises(SettingError, match=f"since= must be left out {why}"):
            channel.send(FACTS, "who ?", since=FACTS[:1])


def test_a_message_that_the_receiver_would_see_no_more_ends_the_session(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all layers slide, what was heard goes out of sight, and nothing in the cache says so."""
    channel = made("qwen3", "prefix")
    session, message = channel.session(), channel.send(FACTS)
    session.ask("who ?", (), message, **digits(channel))
    seen = session.tokens + 20
    monkeypatch.setattr(type(channel.link.receiver.family), "token_limit", lambda *_: seen)
    session.ask("and ?", **digits(channel))
    with pytest.raises(GeometryError, match=f"sees one within {seen} only; begin another"):
        session.ask("and which of all these ?", **digits(channel))
