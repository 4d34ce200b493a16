"""What would be answered wrongly and in silence is warned of, on the line that asked for it; what is usual is not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning import Channel, Inbox, Message
from lcf_lightning.errors import MessageError, SettingError
from tests.channel.conftest import FACTS

ANOTHER = "question='owns bob' is not the one that its message was sent for"


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@contextmanager
def said(match: str, times: int = 1) -> Iterator[None]:
    with pytest.warns(UserWarning, match=match) as warned:
        yield
    assert [(match in str(warning.message), warning.filename) for warning in warned] == [(True, __file__)] * times


@pytest.fixture
def blind(trained: Path) -> Channel:
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    found["metadata"]["prompts"]["share_question"] = False
    config.write_text(json.dumps(found))
    return Channel.from_pretrained(trained)


def test_another_question_than_a_message_was_sent_for(channel: Channel) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    with silence():
        message, other = channel.send_batch([FACTS, FACTS[:1]], ["likes ada", "owns bob"])
        travelled = Message.from_bytes(message.to_bytes("int8"), origin=channel.origin)
        for question in ("likes ada", " likes ada\n", [{"role": "user", "content": "likes ada"}]):
            channel.receive(travelled, question, max_new_tokens=1)
        in_chat = channel.send(FACTS, [*talk, {"role": "user", "content": "likes ada"}])
        channel.receive(in_chat, [*talk, {"role": "user", "content": "likes ada"}], max_new_tokens=1)
        channel.receive(None, "owns bob", max_new_tokens=1)
        channel.receive(replace(message, prompt=None), "owns bob", max_new_tokens=1)  # as of an earlier release
    with said(ANOTHER):
        channel.receive(travelled, "owns bob", max_new_tokens=1)
    with said(ANOTHER):
        channel.receive(travelled, "owns bob", max_new_tokens=1, stream=True)
    with said(ANOTHER):
        channel.score(message, "owns bob", ["tea"])
    with said(ANOTHER):
        channel.receive([other, message], "owns bob", max_new_tokens=1)
    with said(ANOTHER):
        channel.receive_batch([message, None, other], ["owns bob", "who", "owns bob"], max_new_tokens=1)
    with said("question='likes ada' is not the one"):
        channel.receive(in_chat, "likes ada", max_new_tokens=1)


def test_a_bound_message_is_refused_with_another_question(channel: Channel) -> None:
    key = bytes(range(16))
    binding = {"to": "bob", "session": "s1", "expires": 60}
    bound, plain = channel.send(FACTS, "likes ada", **binding), channel.send(FACTS, "likes ada")
    inbox = Inbox("bob")
    with silence():
        message = Message.from_bytes(bound.to_bytes(key=key), key, channel.origin, inbox=inbox, session="s1")
        answer = channel.receive(message, "likes ada", max_new_tokens=3)
        assert answer.text == channel.receive(plain, "likes ada", max_new_tokens=3).text
        for question in ("owns bob", " "):
            with pytest.raises(MessageError, match="is not the one that its message was sent for; a bound message"):
                channel.receive(message, question, max_new_tokens=1)
        several = channel.send_batch([FACTS, FACTS], ["likes ada"] * 2, **binding)
        with pytest.raises(TypeError, match="send_batch.* unexpected keyword argument 'expire'"):
            channel.send_batch([FACTS], ["likes ada"], expire=60)  # type: ignore[call-arg]
    nonces = {each.binding.nonce for each in (bound, *several) if each.binding is not None}
    assert (len(nonces), plain.binding) == (3, None)
    with pytest.raises(SettingError, match="expires=None of a message with a recipient"):
        channel.send(FACTS, "likes ada", to="bob")


def test_a_message_that_was_sent_for_no_question_answers_any(blind: Channel) -> None:
    with silence():
        alone, together = blind.send(FACTS), blind.send_batch([FACTS, FACTS[:1]])
        assert alone.prompt is None
        assert "question" not in alone.to_bytes()[:400].decode(errors="ignore")
        assert together[0].spans == alone.spans
        blind.receive_batch([alone, *together], ["likes ada", "owns bob", "who"], max_new_tokens=1)


def test_what_a_batch_lacks(channel: Channel, blind: Channel) -> None:
    with said("question=None, but this adapter's sharer was shown the question in training"):
        channel.send_batch([FACTS, FACTS])
    with said("question not read: this adapter's sharer was shown none"):
        blind.send_batch([FACTS, FACTS], ["likes ada", None])


def test_nothing_to_read_and_nothing_asked(channel: Channel) -> None:
    for nothing in ("", " \n ", [], [" "]):
        with said("the sharer is given nothing to read but the question"):
            message = channel.send(nothing, "likes ada")
        assert message.spans == 1
    with silence():
        channel.receive(message, "likes ada", "", max_new_tokens=1)  # many receivers have nothing of their own
    with said("the question is empty"):
        message = channel.send(FACTS, " ")
    with said("the question is empty"):
        channel.receive(message, [{"role": "user", "content": ""}], FACTS, max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"temperature": 0.7}, "temperature=0.7"), ({"top_k": 3, "top_p": 0.5}, "top_k=3, top_p=0.5")],
)
def test_sampling_that_does_not_happen(channel: Channel, options: dict[str, Any], named: str) -> None:
    message = channel.send(FACTS, "likes ada")
    with said(f"{named} has no effect: without do_sample=True answers are greedy."):
        answer = channel.receive(message, "likes ada", max_new_tokens=3, **options)
    assert answer.text == channel.receive(message, "likes ada", max_new_tokens=3).text
    with silence():
        channel.receive(message, "likes ada", max_new_tokens=1, do_sample=True, **options)
        channel.receive(message, "likes ada", max_new_tokens=1, do_sample=False, temperature=0.7)
        channel.receive(message, "likes ada", max_new_tokens=1, temperature=0.0)


def test_messages_and_channels_are_one_line(channel: Channel, model_folders: dict[str, Path], trained: Path) -> None:
    message = channel.send(FACTS, "likes ada", pooled=True)
    assert repr(message) == (
        f"Message(1 spans, 4 layers × 2 heads × 8, float32, pooled, adapter {channel.origin.adapter[:8]})"
    )
    llama, qwen3 = (repr(str(model_folders[name])) for name in ("llama", "qwen3"))
    assert repr(channel) == f"Channel({llama} → {qwen3}, LCF-X, d=8, cpu)"
    assert repr(Channel.from_pretrained(trained, sides="receiver")) == f"Channel(? → {qwen3}, LCF-X, d=8, cpu)"
