"""`examples/two_processes.py`: two processes must say, bit for bit, what one says; and nothing of them must stay."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport
from torch import Tensor
from transformers import LogitsProcessorList

from lcf_lightning import Channel, Inbox, Message, ModelSpec
from lcf_lightning.errors import DataError, MessageError, SettingError
from tests.pairs import small_data, small_module, small_trainer

SCRIPT = Path(__file__).parents[1] / "examples" / "two_processes.py"
KEY, NEXT = bytes(range(32)), bytes(range(1, 33))
SESSION = "5e55" * 8
SHARER_READS, RECEIVER_READS = ["likes ada tea .", "owns ben lamp ."], ["finds eva bell ."]
ASKED = Namespace(question="likes ada", receiver_reads=RECEIVER_READS, max_new_tokens=6)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def adapter(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter between two tiny models."""
    folder = tmp_path_factory.mktemp("two_processes")
    sharer, receiver = (ModelSpec(str(model_folders[name])) for name in ("llama", "qwen3"))
    trainer = small_trainer(folder, AdapterExport())
    trainer.fit(small_module(sharer, receiver), datamodule=small_data(sharer, receiver))
    return folder / "adapter"


def recorded(patch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every process that is started from here on."""
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen[str]):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            started.append(self)

    patch.setattr(subprocess, "Popen", Recorded)
    return started


@pytest.fixture(scope="module")
def address(example: ModuleType, adapter: Path) -> Iterator[str]:
    """Where a sharer in a process of its own listens; its messages travel in the dtype they have."""
    arguments = [str(adapter), "--text_tokens", "5", "--sharer_reads", *SHARER_READS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # sums are made in the same order
        children = recorded(patch)
        with example.sharer_process(arguments, [KEY, NEXT]) as address:
            patch.undo()
            yield address
            children[0].stdin.close()  # type: ignore[union-attr]  # all that a process which was killed can do
            assert children[0].wait(60) == 0


def asked(example: ModuleType, address: str, path: str, question: str) -> tuple[bytes, float, float]:
    """What the sharer says, in `SESSION`."""
    said: tuple[bytes, float, float] = example.ask(
        address, path, {"question": question, "session": SESSION}, example.Limits()
    )
    return said


def read(example: ModuleType, channel: Channel, body: bytes, inbox: Inbox | None = None) -> Message:
    """As the script does it, of keys that are about to be exchanged."""
    inbox = inbox or Inbox(example.RECEIVER)
    return Message.from_bytes(body, [NEXT, KEY], channel.origin, inbox=inbox, session=SESSION)


def first_logits(channel: Channel, message: Message, question: str) -> tuple[str, Tensor]:
    """The receiver's answer, and its logits of the first token."""
    seen: list[Tensor] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores.clone())
        return scores

    answer = channel.receive(message, question, RECEIVER_READS, 6, logits_processor=LogitsProcessorList([note]))
    return answer.text, seen[0]


def test_two_processes_say_what_one_says(example: ModuleType, adapter: Path, address: str) -> None:
    alone, receiver = Channel.from_pretrained(adapter), Channel.from_pretrained(adapter, sides="receiver")
    with pytest.raises(SettingError, match="no sharer"):
        receiver.send(SHARER_READS, "likes ada")
    answers = {}
    for question in ("likes ada", "owns ben"):
        sent = alone.send(SHARER_READS, question)
        body, milliseconds, transfer = asked(example, address, "/message", question)
        came = read(example, receiver, body)
        assert body == replace(sent, binding=came.binding).to_bytes(key=KEY)
        assert milliseconds > 0
        assert transfer > 0
        (text, logits), (expected_text, expected) = (
            first_logits(channel, message, question) for channel, message in ((receiver, came), (alone, sent))
        )
        assert text == expected_text
        assert torch.equal(logits, expected)
        answers[question] = first_logits(receiver, replace(came, binding=None), "likes ada")[1]
    assert not torch.equal(*answers.values())  # the message was listened to


def test_both_channels_answer(example: ModuleType, adapter: Path, address: str) -> None:
    receiver = Channel.from_pretrained(adapter, sides="receiver")
    written, _, _ = asked(example, address, "/text", "likes ada")
    body, _, _ = asked(example, address, "/message", "likes ada")
    message = read(example, receiver, body)
    by_text, by_message = (example.answer(receiver, told, ASKED) for told in (written.decode(), message))
    assert by_text.prompt_tokens > by_message.prompt_tokens  # only the text is read
    assert by_text.milliseconds.keys() | {"fuse", "receiver_prefill"} == by_message.milliseconds.keys()
    assert by_message.text == receiver.receive(message, "likes ada", RECEIVER_READS, 6).text


def test_a_message_that_is_not_for_this_request_is_refused(example: ModuleType, adapter: Path, address: str) -> None:
    receiver = Channel.from_pretrained(adapter, sides="receiver")
    body, _, _ = asked(example, address, "/message", "likes ada")
    inbox, changed = Inbox(example.RECEIVER), body[:-1] + bytes([body[-1] ^ 1])
    for data, key, session, match in (
        (body, bytes(32), SESSION, "not authenticated by this key"),
        (changed, KEY, SESSION, "not authenticated by this key"),
        (body, KEY, "another", f"session='{SESSION}', expected 'another'"),
    ):
        with pytest.raises(MessageError, match=match):
            Message.from_bytes(data, key, receiver.origin, inbox=inbox, session=session)
    late = Inbox(example.RECEIVER, clock=lambda: time.time() + 100)
    for other, match in ((late, "has expired"), (Inbox("somebody else"), "to='receiver', expected 'somebody else'")):
        with pytest.raises(MessageError, match=match):
            read(example, receiver, body, other)
    assert read(example, receiver, body, inbox).binding is not None
    with pytest.raises(MessageError, match="read before"):
        read(example, receiver, body, inbox)


def test_who_asks_is_told_why_it_was_refused(example: ModuleType, address: str) -> None:
    with pytest.raises(DataError, match=r"the sharer refuses \(413\): a request is at most 16384 bytes\."):
        asked(example, address, "/message", "a" * 20_000)
    with pytest.raises(DataError, match=r"the sharer refuses \(404\)"):
        asked(example, address, "/nowhere", "likes ada")
    with pytest.raises(DataError, match=r"the sharer refuses \(400\): session=.* must be 1 to 128 printable ASCII"):
        example.ask(address, "/message", {"question": "likes ada", "session": ""}, example.Limits())
    assert asked(example, address, "/text", "likes ada")[0]


@pytest.mark.slow
def test_of_500_requests_by_50_at_a_time_none_is_lost(example: ModuleType, adapter: Path, address: str) -> None:
    receiver, inbox = Channel.from_pretrained(adapter, sides="receiver"), Inbox(example.RECEIVER)
    with ThreadPoolExecutor(50) as pool:
        bodies = [each[0] for each in pool.map(partial(asked, example, address, "/message"), ["likes ada"] * 500)]
    messages = [read(example, receiver, body, inbox) for body in bodies]
    assert len({message.binding.nonce for message in messages if message.binding is not None}) == 500
    assert all(torch.equal(message.keys, messages[0].keys) for message in messages)


@pytest.mark.slow
def test_the_script_answers_over_both_channels(example: ModuleType, adapter: Path) -> None:
    reads = ["--sharer_reads", *SHARER_READS, "--receiver_reads", *RECEIVER_READS]
    command = [sys.executable, str(SCRIPT), str(adapter), "--repeats", "1", "--max_new_tokens", "6", *reads]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    head, text, latent = done.stdout.splitlines()
    assert head.split() == ["channel", "answer", "bytes", "sharer", "transfer", "receiver", "total"]
    for name, row in (("text", text), ("latent", latent)):
        stages = [float(figure) for figure in re.findall(r"([\d.]+) ms", row)]
        assert row.startswith(f"{name} ")
        assert min(stages) > 0
        assert sum(stages[:3]) == pytest.approx(stages[3], abs=0.2)  # of one repeat; each rounded
    channel = Channel.from_pretrained(adapter)
    message = channel.send(SHARER_READS, "likes ada", to=example.RECEIVER, session=SESSION, expires=30)
    answer = " ".join(channel.receive(message, "likes ada", RECEIVER_READS, 6).text.split())
    assert latent.startswith(f"latent   {answer:<20.20} {len(message.to_bytes()):>9,} ")


@pytest.mark.slow
def test_a_bad_adapter_ends_with_one_sentence(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    children = recorded(monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        example.main([str(tmp_path)])
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: adapter='.*' has no lcf_config\.json; .*\.\n", printed.err)
    assert [child.poll() for child in children] == [2]


def test_an_interrupt_leaves_no_process(
    example: ModuleType, adapter: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the sharer loads."""
    children, handler = recorded(monkeypatch), signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        assert example.main([str(adapter)]) == 130
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert [child.wait(60) for child in children] == [-signal.SIGTERM]
    assert capfd.readouterr() == ("", "")
