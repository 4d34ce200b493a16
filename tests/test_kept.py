"""Adapters and messages of release 0.1.0: what a later release must still read, and answer alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lcf_lightning import CacheAdapter, Channel, Message
from lcf_lightning.adapter.config import AdapterSettings
from lcf_lightning.adapter.folder import CONFIG_FILE, OLDER, WEIGHTS_FILE
from lcf_lightning.errors import AdapterFileError

KEPT = Path(__file__).parent / "kept_0_1_0"


@pytest.fixture(scope="module", params=["span", "prefix", "shared", "c2c"])
def folder(request: pytest.FixtureRequest) -> Path:
    return KEPT / str(request.param)


@pytest.fixture(scope="module")
def channel(folder: Path) -> Channel:
    return Channel.from_pretrained(folder)


def expected(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return content


def test_an_adapter_keeps_its_fingerprint(channel: Channel, folder: Path) -> None:
    assert channel.origin.adapter == expected(folder)["fingerprint"]


def test_its_messages_are_answered_alike(channel: Channel, folder: Path) -> None:
    asked = expected(folder)["questions"]
    for file, key in (("message.lcf", "answer"), ("message_int8.lcf", "answer_int8")):
        message = Message.load(folder / file, origin=channel.origin)
        assert channel.receive(message, asked[0]["question"], asked[0]["receiver"], 4).text == asked[0][key]
    for row in asked:
        message = channel.send(row["sharer"], row["told"])
        assert channel.receive(message, row["question"], row["receiver"], 4).text == row["answer"]


def test_what_is_sent_is_what_was_sent(channel: Channel, folder: Path) -> None:
    row, kept = expected(folder)["questions"][0], Message.load(folder / "message.lcf")
    sent = channel.send(row["sharer"], row["told"])
    if channel.link.shared or not channel.takes_question:
        assert sent.prompt == kept.prompt
    else:  # release 0.1.0 did not say which question a message was sent for
        assert (kept.prompt, len(sent.prompt or "")) == (None, 32)
    for side in ("keys", "values"):
        torch.testing.assert_close(getattr(sent, side), getattr(kept, side), atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class LaterSettings(AdapterSettings):
    """Those of a release that knows one setting more."""

    slots: int = 1


def test_a_later_setting_enters_a_fingerprint_only_where_it_is_not_its_default() -> None:
    config = json.loads((KEPT / "span" / OLDER[0]).read_text())
    # `gate_noise` decides training only, and new adapters have another `norm_eps` than those of old.
    assert set(AdapterSettings(norm_eps=None).deciding()) == set(config["settings"]) - {"gate_noise"}
    assert AdapterSettings().deciding() == AdapterSettings(norm_eps=None).deciding() | {"norm_eps": 1e-6}
    assert LaterSettings().deciding() == AdapterSettings().deciding()
    assert LaterSettings(slots=2).deciding() == AdapterSettings().deciding() | {"slots": 2}
    assert AdapterSettings(gate_noise="none").deciding() == AdapterSettings().deciding()
    assert AdapterSettings(d=64).deciding() != AdapterSettings().deciding()


@pytest.mark.parametrize("place", [(), ("settings",), ("sharer",), ("receiver", "geometry")], ids=str)
def test_an_unknown_field_is_never_ignored(place: tuple[str, ...], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(KEPT / "span", tmp_path / "adapter"))
    config = json.loads((folder / OLDER[0]).read_text())
    part = config
    for name in place:
        part = part[name]
    part["novel"] = 1
    (folder / OLDER[0]).write_text(json.dumps(config))
    with pytest.raises(AdapterFileError, match="novel"):
        CacheAdapter.from_pretrained(folder)


def test_a_folder_with_the_names_of_peft_is_read_and_a_save_gives_it_ours(folder: Path, tmp_path: Path) -> None:
    """PEFT and transformers take a folder with ``adapter_config.json`` for one of PEFT's."""
    copied = Path(shutil.copytree(folder, tmp_path / "adapter"))
    adapter = CacheAdapter.from_pretrained(copied)
    (copied / OLDER[1]).rename(copied / f".adapter_model-{None}.safetensors")  # no digest, no unfinished save
    with pytest.raises(AdapterFileError, match=f"has no {OLDER[1]}"):
        CacheAdapter.from_pretrained(copied)
    adapter.save_pretrained(copied)
    names = {path.name for path in copied.iterdir() if path.suffix in (".json", ".safetensors")}
    assert names == {CONFIG_FILE, WEIGHTS_FILE, "expected.json"}
    assert CacheAdapter.from_pretrained(copied).fingerprint() == adapter.fingerprint()


def test_a_folder_of_peft_is_named_as_such_and_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / OLDER[0]).write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterFileError, match=r"is of PEFT \(adapter_config.json\)"):
        CacheAdapter.from_pretrained(tmp_path)
    CacheAdapter.from_pretrained(folder).save_pretrained(tmp_path)
    assert (tmp_path / OLDER[0]).read_text() == '{"peft_type": "LORA"}'
    CacheAdapter.from_pretrained(tmp_path)
