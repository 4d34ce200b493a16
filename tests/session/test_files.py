"""A session goes on from its file as if it had never stopped; no other file is taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lcf_lightning import Channel
from lcf_lightning.conversation import _digest
from lcf_lightning.errors import DataError, SessionError
from lcf_lightning.session import Session
from tests.session.conftest import FACTS, digits, same

Made = Callable[..., Channel]


@pytest.fixture
def channel(made: Made) -> Channel:
    return made("qwen3", "prefix")


@pytest.fixture
def kept(channel: Channel, tmp_path: Path) -> tuple[Session, Path]:
    session, file = channel.session(), tmp_path / "deep" / "chat.session"
    with pytest.raises(DataError, match="no turn yet"):
        session.save(file)
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "?"},
    ]
    session.ask(chat, ["likes <eos> tea ."], channel.send(FACTS[:2]), **digits(channel))
    session.ask("and ?", **digits(channel))
    session.save(file)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    return session, file


def test_it_goes_on_bit_for_bit(channel: Channel, kept: tuple[Session, Path]) -> None:
    session, file = kept
    again = channel.load_session(file)
    assert (again.turns, repr(again)) == (session.turns, repr(session))
    messages = [channel.send(FACTS[:2]), channel.send(FACTS[2:])]  # the first of which it knows
    for each in (session, again):
        each.ask("what else ?", (), messages, **digits(channel))
    assert session.state.ids == again.state.ids
    assert session.turns == again.turns
    same(again.state.cache, session.state.cache, atol=0, rtol=0)
    assert [len(told.messages) for told in again.state.told] == [1, 1]


def test_damage_is_found(channel: Channel, kept: tuple[Session, Path]) -> None:
    file = kept[1]
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SessionError, match=r"session file '.*chat\.session' .*\.$"):
            channel.load_session(file)
    for cut in (0, 4, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(SessionError, match="cannot be read"):
            channel.load_session(file)


def test_another_file_is_refused(channel: Channel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    save_file({"keys": torch.ones(1)}, tmp_path / "other.safetensors")
    save_file({"keys": torch.ones(1)}, tmp_path / "empty.safetensors", {"session": "", "digest": "0"})
    for name, why in (
        ("none", "cannot be read: No such file"),
        ("pipe", r"cannot be read: it is no regular file\.$"),
        ("a\0b", "cannot be read"),
        ("other.safetensors", "is none that a session has written"),
        ("empty.safetensors", "is none that a session has written"),
    ):
        with pytest.raises(SessionError, match=why):
            channel.load_session(tmp_path / name)


def test_whose_it_is_decides(made: Made, channel: Channel, kept: tuple[Session, Path]) -> None:
    file = kept[1]
    with pytest.raises(SessionError, match="of another adapter or pair: adapter="):
        made("qwen3", "carry").load_session(file)
    with torch.no_grad():
        channel.link.receiver.model.get_input_embeddings().weight[0] += 1
    for name in ("weight_digests", "weights_fingerprint", "fingerprint"):  # found once
        channel.link.receiver.__dict__.pop(name, None)
    with pytest.raises(SessionError, match="is of a receiver with the weights"):
        channel.load_session(file)


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, object]], object]) -> None:
    """The file after a change, under a right digest: an attacker's."""
    with safe_open(file, framework="pt") as stored:
        facts, tensors = (
            json.loads(stored.metadata()["session"]),
            {name: stored.get_tensor(name) for name in stored.keys()},  # noqa: SIM118
        )
    change(tensors, facts)
    text = json.dumps(facts)
    save_file(tensors, file, {"session": text, "digest": _digest(tensors, text)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors, facts: facts.update(format=2), "has format=2; this release reads 1"),
        (lambda tensors, facts: facts.pop("turns"), "session has no turns"),
        (lambda tensors, facts: facts.update(turns=[]), "do not fit"),
        (lambda tensors, facts: facts["told"][0].update(slots=1), "do not fit"),
        (lambda tensors, facts: facts["told"][0].update(at=10_000), "do not fit"),
        (lambda tensors, facts: facts["told"][0].update(messages=[]), "exactly the tensors"),
        (lambda tensors, facts: tensors.update(more=torch.ones(1)), "exactly the tensors"),
        (lambda tensors, facts: tensors.update(ids=tensors["ids"] + 10_000), "do not fit"),
        (lambda tensors, facts: tensors.update(ids=tensors["ids"].float()), "do not fit"),
        (lambda tensors, facts: tensors.update(keys=tensors["keys"][:, :, 1:].contiguous()), "do not fit"),
        (lambda tensors, facts: tensors["values"].fill_(torch.inf), "do not fit"),
        (lambda tensors, facts: tensors.update({n: tensors[n].half() for n in ("keys", "values")}), "in torch.float16"),
        (lambda tensors, facts: tensors.update({"told.0.0.keys": torch.ones(2)}), "message must both be"),
    ],
)  # fmt: skip
def test_no_forged_file_breaks_anything(
    channel: Channel, kept: tuple[Session, Path], change: Callable[..., object], why: str
) -> None:
    rewritten(kept[1], change)
    with pytest.raises(SessionError, match=why):
        channel.load_session(kept[1])


def test_a_kill_leaves_the_earlier_file(kept: tuple[Session, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    session, file = kept
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        session.save(file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]
