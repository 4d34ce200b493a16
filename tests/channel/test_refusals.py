"""What a channel does not send or receive, and what it says then."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.errors import AdapterFileError, DataError, GeometryError, MessageError, ModelError
from lcf_lightning.models.loading import load_frozen
from tests.channel.conftest import FACTS, Spec
from tests.pairs import small_module


def test_a_question_other_than_in_training_is_warned_of(trained: Path) -> None:
    with pytest.warns(UserWarning, match="question=None, but this adapter's sharer was shown the question"):
        Channel.from_pretrained(trained).send(FACTS)
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    found["metadata"]["prompts"]["share_question"] = False
    config.write_text(json.dumps(found))
    blind = Channel.from_pretrained(trained)
    assert not blind.takes_question
    with pytest.warns(UserWarning, match="question not read: .* was shown none in training; give it") as warned:
        told = blind.send(FACTS, "likes ada")
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert blind.send(FACTS).to_bytes() == told.to_bytes()


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ([{"role": "assistant", "content": "Hi"}], r"chat roles \['assistant'\] must be user and assistant by turns"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "from a user's turn to a user's",
        ),
        ([], r"chat roles \[\] must be user"),
        ([{"role": "user"}], r"\{'role': 'user'\} must be a text, or a chat's turn with a role and"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a text or parts of type text"),
        ([{"role": "user", "content": ["text"]}], "a text or parts of type text"),
        ([{"role": "user", "content": None}], "must be a text, or a chat's turn"),
        ("half a \ud800", "is no text: surrogates not allowed"),
    ],
)
def test_a_chat_that_cannot_be_understood_is_refused(
    channel: Channel, chat: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        channel.receive(channel.send(FACTS), chat)
    with pytest.raises(DataError, match=problem):
        channel.send(FACTS, chat)


def test_a_message_of_another_adapter_is_refused(channel: Channel, spec: Spec, tmp_path: Path) -> None:
    other = small_module(spec("llama"), spec("qwen3"))
    with torch.no_grad():
        next(other.adapter.parameters()).add_(1)
    other.adapter.save_pretrained(tmp_path / "other")
    message = Channel.from_pretrained(tmp_path / "other").send(FACTS, "likes ada")
    with pytest.raises(MessageError, match="message of another adapter or pair: adapter='[0-9a-f]{32}', expected"):
        channel.receive(message, "likes ada")
    with pytest.raises(MessageError, match="message of another adapter or pair"):
        Message.from_bytes(message.to_bytes(), origin=channel.origin)


def test_a_model_of_equal_geometry_but_other_weights_is_refused(
    trained: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    assert all(len(found[role]["fingerprint"]) == 32 for role in ("sharer", "receiver"))
    shutil.copytree(model_folders["qwen3"], tmp_path / "twin")
    config.write_text(config.read_text().replace(str(model_folders["qwen3"]), str(tmp_path / "twin")))
    Channel.from_pretrained(trained)  # the same weights in another place
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "twin")
    other = "receiver path='.*twin' has other weights, or another tokenizer, than the receiver of this adapter"
    with pytest.raises(ModelError, match=other):
        Channel.from_pretrained(trained)
    found["receiver"] |= {"path": str(tmp_path / "twin"), "fingerprint": None}  # an adapter of an earlier release
    config.write_text(json.dumps(found))
    assert Channel.from_pretrained(trained).origin.receiver is None


def test_a_tokenizer_that_is_not_the_adapters_is_refused(
    trained: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """But by an adapter of an earlier release, which knows the weights alone."""
    config = trained / "lcf_config.json"
    weights = load_frozen(ModelSpec(str(model_folders["qwen3"]))).weights_fingerprint
    shutil.copytree(model_folders["qwen3"], tmp_path / "twin")
    config.write_text(config.read_text().replace(str(model_folders["qwen3"]), str(tmp_path / "twin")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "twin")
    tokenizer.chat_template = f"{tokenizer.chat_template} "
    tokenizer.save_pretrained(tmp_path / "twin")
    with pytest.raises(ModelError, match="receiver path='.*twin' has other weights, or another tokenizer"):
        Channel.from_pretrained(trained)
    found = json.loads(config.read_text())
    found["receiver"] |= {"fingerprint": weights}
    config.write_text(json.dumps(found))
    assert Channel.from_pretrained(trained).origin.receiver == weights


def test_a_folder_here_has_no_revision(trained: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"revision='main' of adapter '.*' must be null: that is no hub id"):
        Channel.from_pretrained(trained, revision="main")


def test_a_model_that_is_not_the_adapters_is_refused(
    trained: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    config = trained / "lcf_config.json"
    shutil.copytree(model_folders["gemma3"], tmp_path / "other")
    config.write_text(config.read_text().replace(str(model_folders["qwen3"]), str(tmp_path / "other")))
    with pytest.raises(GeometryError, match="receiver of this adapter .*: layers is 5, expected 4; kv_heads is 1"):
        Channel.from_pretrained(trained)
    with pytest.raises(AdapterFileError, match="nowhere' is no folder here; it would be /"):
        Channel.from_pretrained(tmp_path / "nowhere")


def test_what_cannot_be_sent_or_received_is_refused(channel: Channel) -> None:
    message = channel.send(FACTS, "likes ada")
    with pytest.raises(DataError, match="send needs at least one passage, or a question"):
        channel.send([])
    with pytest.raises(DataError, match="receive needs at least one message"):
        channel.receive([], "likes ada")
    with pytest.raises(DataError, match="1 messages, 2 questions, 2 texts of a batch must be as many of each"):
        channel.receive_batch([message], ["a", "b"], [[], []])
    with pytest.raises(DataError, match="2 texts, 1 questions of a batch must be as many of each"):
        channel.send_batch([FACTS, FACTS], ["a"])
    for batch in (("ab", "cd"), (FACTS, "cd"), (None, [])):
        with pytest.raises(DataError, match="of a batch must be a list, not (str|NoneType)"):
            channel.send_batch(*batch)  # type: ignore[arg-type]
    assert channel.send_batch([], []) == channel.receive_batch([], []) == []
    for nothing in (5, message.to_bytes(), [message, None], [None]):
        with pytest.raises(MessageError, match="message= must be a Message, or several, not .*; `Message.from_bytes`"):
            channel.receive(nothing, "likes ada")  # type: ignore[arg-type]
    for text in (None, 5, {"role": "user", "content": "tea"}, b"tea"):
        with pytest.raises(DataError, match="must be a text, a list of passages, or a chat|question=.* must be a text"):
            channel.send(text, "likes ada")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="question=.* must be a text, or a chat that ends with it"):
            channel.receive(message, text)  # type: ignore[arg-type]
    huge = Message(*(torch.full_like(side, 3e38) for side in (message.keys, message.values)), message.origin)
    with pytest.raises(MessageError, match="edits the receiver's cache to values that are not finite"):
        channel.receive(huge, "likes ada")


def test_what_a_limit_leaves_out_is_said(trained: Path) -> None:
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    found["metadata"]["prompts"] |= {"max_sharer_tokens": 60, "max_receiver_tokens": 60}
    config.write_text(json.dumps(found))
    channel = Channel.from_pretrained(trained)
    with pytest.warns(UserWarning, match="max_sharer_tokens, as in training, leaves out [0-9]+ spans") as sending:
        message = channel.send(FACTS * 4, "likes ada")
    assert message.spans < 12
    with pytest.warns(UserWarning, match="max_receiver_tokens, as in training, leaves out [0-9]+ spans") as receiving:
        channel.receive(message, "likes ada", FACTS * 4)
    assert {warning.filename for warning in (*sending, *receiving)} == {__file__}  # not a line of ours


def test_where_both_read_the_same_a_part_of_a_message_is_refused(spec: Spec, tmp_path: Path) -> None:
    small_module(spec("llama"), spec("qwen3"), pooler=None).adapter.save_pretrained(tmp_path / "shared")
    channel = Channel.from_pretrained(tmp_path / "shared")
    message = channel.send(FACTS, "likes ada")
    for kept in (1, message.spans - 1):
        part = replace(message, keys=message.keys[..., :kept, :], values=message.values[..., :kept, :])
        with pytest.raises(MessageError, match="message of another text"):
            channel.receive(part, "likes ada", FACTS)


def test_what_is_wrong_with_an_adapters_prompts_is_said_before_a_weight_is_loaded(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    monkeypatch.setattr("lcf_lightning.sides.load_frozen", lambda *_: pytest.fail("a model was loaded"))
    for wrong in ({"unknown": 1}, {"spans": "foo"}, {"context": 5}):
        config.write_text(json.dumps(found | {"metadata": {"prompts": wrong}}))
        with pytest.raises(AdapterFileError, match=r"metadata\.prompts of this adapter cannot be understood"):
            Channel.from_pretrained(trained)
    config.write_text(json.dumps(found | {"sharer": found["sharer"] | {"fingerprint": "5"}}))
    with pytest.raises(AdapterFileError, match="fingerprint='5' must be 32 hexadecimal digits, or null"):
        Channel.from_pretrained(trained)


def test_another_way_to_write_prompts_is_another_origin(trained: Path) -> None:
    config = trained / "lcf_config.json"
    before, found = Channel.from_pretrained(trained), json.loads(config.read_text())
    found["metadata"]["prompts"]["separator"] = " ; "
    config.write_text(json.dumps(found))
    with pytest.raises(MessageError, match="message of another adapter or pair: adapter="):
        Channel.from_pretrained(trained).receive(before.send(FACTS, "likes ada"), "likes ada")
    found["metadata"]["prompts"]["separator"] = "\n"
    config.write_text(json.dumps(found | {"metadata": found["metadata"] | {"steps": 99}}))
    assert Channel.from_pretrained(trained).origin == before.origin


def test_a_prompt_of_one_token_is_refused(trained: Path) -> None:
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    found["metadata"]["prompts"]["question"] = "{question}"
    config.write_text(json.dumps(found))
    channel = Channel.from_pretrained(trained)
    message = channel.send(FACTS, "a")
    with pytest.raises(DataError, match="the receiver's prompt must have at least two tokens"):
        channel.receive(message, "a")
    assert channel.receive(message, "a b c").prompt_tokens > 1
