"""Turn after turn a session remembers what one prefill of the whole conversation does, and reads only what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lcf_lightning import Channel, Message
from lcf_lightning.conversation import State, Told
from lcf_lightning.data.tokens import Encoded
from lcf_lightning.models.cache import KVCache, extend, prefill
from lcf_lightning.models.decoding import Decoder
from lcf_lightning.models.options import Decoding
from lcf_lightning.receiving import Heard, decoder, listen
from lcf_lightning.stopwatch import Stopwatch
from tests.conftest import CHAT_TEMPLATE
from tests.session.conftest import FACTS, at_once, digits, same, spoken

Made = Callable[..., Channel]
RETHOUGHT = CHAT_TEMPLATE.replace("<|assistant|>\n{%", "<|assistant|>\n<think>\n\n</think>\n\n{%")
"""As Qwen3's: an answer is begun otherwise than it stands in later prompts."""
COUNTED = "{{ messages | length }}" + CHAT_TEMPLATE
"""What no token of an earlier turn outlives."""


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were read ahead of each message."""
    found: list[int] = []

    def watched(
        channel: Channel, received: Sequence[Sequence[Message]], prompts: Sequence[Encoded], past: KVCache | None
    ) -> Heard:
        if received[0]:
            encoder = channel.writer.encoder(channel.prompts, "receiver")
            found.append(encoder.split(prompts).ahead.ids.shape[1])
        return listen(channel, received, prompts, past)

    monkeypatch.setattr("lcf_lightning.session.listen", watched)
    return found


@pytest.mark.parametrize(
    ("receiver", "pooler", "prompts"),
    [
        ("qwen3", "prefix", {"chat": True}),
        ("gemma3", "prefix", {}),
        ("qwen3", "carry", {"reread": "question"}),
        ("gemma3", "carry", {"chat": True, "reread": "question"}),
    ],
)
def test_every_turn_is_one_prefill_of_everything(
    made: Made, receiver: str, pooler: str, prompts: dict[str, Any], ahead: list[int]
) -> None:
    channel = made(receiver, pooler, **prompts)
    first, last = channel.send(FACTS[:2]), channel.send(FACTS[2:])
    session = channel.session()
    turns = [("who ?", FACTS[:1], first), ("and now ?", ["finds eva bell ."], None), ("what else ?", (), last)]
    for question, passages, message in turns:
        before = session.state
        answer = session.ask(question, passages, message, **digits(channel, "" if channel.prompts.chat else " "))
        assert answer.text.isdigit()
        assert answer.new_tokens == 5
        assert session.state.ids[: len(before.ids)] == before.ids
        same(session.state.cache, at_once(channel, session.state, ahead))
    assert [told.slots for told in session.state.told] == [first.spans, last.spans]
    prompt = session.state.ids[: answer.prompt_tokens]
    scratch = at_once(channel, replace(session.state, ids=prompt[:-1]), ahead)
    options = digits(channel, "" if channel.prompts.chat else " ")
    decoding = Decoding.of(channel.link.receiver, options.pop("max_new_tokens"), options)
    tokens = torch.tensor([prompt[:-1]])
    own = tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([prompt[-1:]])
    again = Decoder(channel.link.receiver, scratch, *own, Stopwatch(torch.device("cpu")), decoding).answers()[0]
    assert again.text == answer.text


@pytest.mark.parametrize("receiver", ["qwen3", "gemma3"])
@torch.no_grad()
def test_an_edit_is_of_its_turns_tokens_alone(made: Made, receiver: str, ahead: list[int]) -> None:
    channel = made(receiver, "span", "llama")
    first, last = channel.send(FACTS[:2]), channel.send(FACTS[2:])
    session, link = channel.session(), channel.link
    session.ask("who ?", FACTS[:1], first, **digits(channel))
    session.ask("what else ?", (), last, **digits(channel))
    ids = torch.tensor([session.state.ids])
    mask = torch.ones_like(ids, dtype=torch.bool)
    (_, one), (start, two) = [(told.at, told.at + hears) for told, hears in zip(session.state.told, ahead, strict=True)]
    cache = link.fuse(prefill(link.receiver.model, ids[:, :one], mask[:, :one]), spoken(channel, first))
    cache = extend(link.receiver.model, cache, ids[:, one:two], mask[:, one:two])
    edited = link.fuse(cache, spoken(channel, last))  # all of it; its later tokens count
    sides = [
        tuple(torch.cat([old[:, :, :start], new[:, :, start:]], 2) for old, new in zip(*both, strict=True))
        for both in ((cache.keys, edited.keys), (cache.values, edited.values))
    ]
    cache = KVCache(sides[0], sides[1], cache.mask)
    same(session.state.cache, extend(link.receiver.model, cache, ids[:, two:], mask[:, two:]))


@pytest.mark.parametrize(("pooler", "told"), [("span", True), ("prefix", True), ("carry", True), ("span", False)])
def test_the_first_turn_is_heard_as_receive_hears_it(made: Made, pooler: str, told: bool) -> None:
    channel = made("gemma3", pooler, reread="question")
    message = channel.send(FACTS) if told else None
    session = channel.session()
    answer = session.ask("who ?", FACTS[:1], message, 6)
    received = channel.receive(message, "who ?", FACTS[:1], 6)
    assert (answer.text, answer.prompt_tokens) == (received.text, received.prompt_tokens)
    bits = decoder(channel, [message], ["who ?"], [FACTS[:1]], 6, {}).cache
    assert session.state.cache is not None
    same(session.state.cache.until(bits.mask.shape[1]), bits, atol=0, rtol=0)


def tokens_read(channel: Channel, ask: Callable[[], object]) -> list[int]:
    """How many tokens the receiver reads at a time meanwhile."""
    counts: list[int] = []
    hook = channel.link.receiver.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: counts.append((args[0] if args else given["input_ids"]).shape[1]), with_kwargs=True
    )
    ask()
    hook.remove()
    return counts


@pytest.mark.parametrize("told", [True, False])
def test_only_what_is_new_is_read(made: Made, told: bool) -> None:
    channel = made("qwen3", "prefix")
    session = channel.session()
    answer = session.ask("who ?", FACTS, **digits(channel))
    kept = len(session.state.ids)
    assert kept == answer.prompt_tokens + 4  # the last token of the answer was not read
    message = channel.send(FACTS) if told else None
    counts = tokens_read(channel, lambda: session.ask("and ?", (), message, **digits(channel)))
    assert sum(counts) == len(session.state.ids) - kept
    assert len(counts) == (6 if told else 5)  # where nothing is heard, all that is new at once, then token by token


def test_what_is_known_costs_nothing(made: Made) -> None:
    channel = made("qwen3", "prefix")
    message = channel.send(FACTS)
    sessions = [channel.session(), channel.session()]
    for session in sessions:
        session.ask("who ?", (), message, **digits(channel))
    again = Message.from_bytes(message.to_bytes(), origin=channel.origin)  # another object that says the same
    for session, given in zip(sessions, (None, [again, message]), strict=True):
        session.ask("and ?", (), given, **digits(channel))
    one, other = (session.state for session in sessions)
    assert (one.ids, one.told[0].slots, len(one.told)) == (other.ids, message.spans, 1)
    same(one.cache, other.cache, atol=0, rtol=0)
    sessions[1].ask("?", (), channel.send(FACTS[:1]), **digits(channel))
    assert len(sessions[1].state.told) == 2


@pytest.mark.parametrize("pooler", ["prefix", "span"])
@pytest.mark.parametrize("template", [RETHOUGHT, COUNTED])
def test_a_template_that_writes_history_otherwise_is_read_anew(
    made: Made, pooler: str, template: str, ahead: list[int]
) -> None:
    channel = made("qwen3", pooler, chat=True)
    channel.link.receiver.tokenizer.chat_template = template
    message, session = channel.send(FACTS), channel.session()
    session.ask("who ?", FACTS[:1], message, **digits(channel, ""))
    before = session.state.ids
    session.ask("and ?", **digits(channel, ""))
    state: State = session.state
    (told,) = state.told
    prompt = channel.writer.prompts("receiver", channel.prompts, [()], [(session.state.turns[:-1], "and ?")])[0].ids
    assert list(state.ids[: len(prompt)]) == prompt
    assert told.own == (len(prompt) if template == COUNTED else ahead[0] + 1)
    if pooler == "prefix":  # what is read anew sees the message
        kept = next(place for place, pair in enumerate(zip(before, prompt, strict=False)) if pair[0] != pair[1])
        same(state.cache, at_once(channel, state, [kept or ahead[-1]]))


def test_an_answer_ends_where_it_stops(made: Made) -> None:
    """What was generated behind the stop is forgotten; so is a blank in front of the next turn."""
    channel = made("qwen3", "prefix", stop="5")
    session = channel.session()
    answer = session.ask("who ?", **digits(channel, " 1 52"))
    assert answer.text == "1"
    assert answer.new_tokens == 5
    text = channel.link.receiver.tokenizer.decode(session.state.ids)
    assert text.endswith("who ?: 1")


def test_after_beams_the_answer_is_read(made: Made, ahead: list[int]) -> None:
    channel = made("qwen3", "prefix")
    session = channel.session()
    for question, message in (("who ?", channel.send(FACTS)), ("and ?", None), ("so ?", None)):
        answer = session.ask(question, (), message, num_beams=2, **digits(channel))
        assert len(session.state.ids) == answer.prompt_tokens - 1
    session.ask("then ?", **digits(channel))
    same(session.state.cache, at_once(channel, session.state, ahead))


def test_streams_and_samples_are_turns_too(made: Made, ahead: list[int]) -> None:
    channel = made("gemma3", "prefix")
    session, other = channel.session(), channel.session()
    message = channel.send(FACTS)
    torch.manual_seed(0)
    sampled = {"do_sample": True, "temperature": 3.0}
    stream = session.ask("who ?", (), message, stream=True, **digits(channel), **sampled)
    text = "".join(stream)
    torch.manual_seed(0)
    assert other.ask("who ?", (), message, **digits(channel), **sampled).text == text.strip() == session.turns[0][1]
    assert session.state.ids == other.state.ids
    same(session.state.cache, at_once(channel, session.state, ahead[:1]))


@pytest.mark.parametrize("chat", [True, False])
def test_what_was_said_ends_no_turn_later_either(made: Made, chat: bool) -> None:
    """Text of a control token is text in the turn that says it, and in all that follow; it is not read anew."""
    channel = made("qwen3", "prefix", chat=chat)
    session = channel.session()
    session.ask("who <eos> ?", ["finds <eos> bell ."], **digits(channel, "" if chat else " "))
    kept = session.state.ids
    session.ask("and ?", **digits(channel, "" if chat else " "))
    assert session.state.ids[: len(kept)] == kept
    assert channel.link.receiver.stop_ids[0] not in session.state.ids


def test_what_was_heard_in_a_place_that_is_read_anew_is_heard_anew(made: Made, ahead: list[int]) -> None:
    """In the third turn's prompt the first answer is written otherwise: only what was heard before it is kept."""
    channel = made("qwen3", "prefix", chat=True)
    marked = "{% if loop.index0 == 1 and messages | length > 3 %}!{% endif %}<|{{ m.role }}|>"
    channel.link.receiver.tokenizer.chat_template = CHAT_TEMPLATE.replace("<|{{ m.role }}|>", marked)
    first, second, session = channel.send(FACTS[:1]), channel.send(FACTS[1:]), channel.session()
    for question, message in (("who ?", first), ("and ?", second), ("so ?", None)):
        session.ask(question, (), message, **digits(channel, ""))
    one, two = session.state.told
    assert [one.slots, two.slots, two.at + two.own] == [first.spans, second.spans, len(session.state.ids) - 4]
    hidden = [min(ahead[0], two.at), ahead[2]]  # what is read anew sees what is kept
    same(session.state.cache, at_once(channel, session.state, hidden))


def test_an_edit_is_lost_with_more_than_half_of_its_tokens() -> None:
    assert [Told(10, 8, 0, ()).remains(read) for read in (13, 14)] == [False, True]
    assert [Told(10, 8, 3, ()).remains(read) for read in (9, 10)] == [False, True]
