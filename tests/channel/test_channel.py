from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.adapter.subset import keep_layers
from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.models.spec import load_tokenizer
from tests.channel.conftest import FACTS, Spec, edited
from tests.pairs import small_data, small_module


def test_four_lines_answer_as_the_evaluation_does(spec: Spec, channel: Channel) -> None:
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    batches = list(data.test_dataloader())
    for batch in batches:
        example = batch.examples[0]
        message = channel.send([passage[0] for passage in example.sharer], question=example.question)
        answer = channel.receive(message, example.question, [p[0] for p in example.receiver], max_new_tokens=6)
        expected = run_arms(ArmCaches(channel.link, channel.writer, batch), ["message"], 6)[0]
        assert answer.text == expected.prediction
    assert len(batches) == 12


def test_an_answer_ends_where_the_evaluation_ends_it(spec: Spec, channel: Channel) -> None:
    """At `stop`, streamed too; with null only at the end of sequence."""
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    (batch, *_) = data.test_dataloader()
    (example,) = batch.examples
    message = channel.send([passage[0] for passage in example.sharer], question=example.question)
    own = [passage[0] for passage in example.receiver]
    channel.prompts = replace(channel.prompts, stop=None)
    whole = channel.receive(message, example.question, own, max_new_tokens=12).text
    stop = next(letter for letter in whole[2:] if letter not in whole[:2] and letter.strip())
    channel.prompts = replace(channel.prompts, stop=stop)
    answer = channel.receive(message, example.question, own, max_new_tokens=12)
    assert 0 < len(answer.text) < len(whole)
    assert answer.text == whole[: whole.index(stop)].strip()
    assert "".join(channel.receive(message, example.question, own, max_new_tokens=12, stream=True)) == answer.text
    cut = replace(batch, prompts=replace(batch.prompts, stop=stop))
    (evaluated,) = run_arms(ArmCaches(channel.link, channel.writer, cut), ["message"], 12)
    assert evaluated.prediction == answer.text


def test_a_message_has_a_summary_for_each_span_or_one_for_all(channel: Channel) -> None:
    whole, pooled = channel.send(FACTS, "likes ada"), channel.send(FACTS, "likes ada", pooled=True)
    assert (whole.spans, pooled.spans) == (4, 1)  # the question is a span of its own
    assert whole.keys.shape == (4, 1, 2, 4, 8)
    assert len(pooled.to_bytes()) < len(whole.to_bytes())
    for one, other in zip(edited(channel, [whole], "q"), edited(channel, [pooled], "q"), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_remembered_between_calls(channel: Channel) -> None:
    message = channel.send(FACTS[:1], "likes ada")
    before = channel.receive(message, "likes ada")
    channel.receive(channel.send(FACTS[1:2], "owns bob"), "owns bob", ["fears cleo fox ."])
    again = channel.send(FACTS[:1], "likes ada")
    assert message.to_bytes() == again.to_bytes()
    assert channel.receive(again, "likes ada").text == before.text


def test_texts_passages_and_chats_are_ways_to_say_the_same(channel: Channel) -> None:
    ways = ["\n\n".join(FACTS), FACTS, [{"role": "user", "content": fact} for fact in FACTS]]
    sent = [channel.send(way, "likes ada").to_bytes() for way in ways]
    assert len(set(sent)) == 1
    asked = channel.receive(channel.send(FACTS), [{"role": "user", "content": "likes ada"}])
    assert asked.text == channel.receive(channel.send(FACTS), "likes ada").text
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "likes ada"},
    ]
    longer = channel.receive(channel.send(FACTS, talk), talk)
    assert longer.prompt_tokens > asked.prompt_tokens + 10
    assert channel.send(FACTS, talk).to_bytes() != sent[0]
    parts = [{"type": "text", "text": text} for text in ("likes", "ada")]
    developer = [{"role": "developer", "content": "Be brief."}, *talk[1:3], {"role": "user", "content": parts}]
    lines = [*talk[:3], {"role": "user", "content": "likes\nada"}]
    assert channel.send(FACTS, developer).to_bytes() == channel.send(FACTS, lines).to_bytes()


def test_spans_of_a_message_are_those_of_training(trained: Path) -> None:
    text = "It rained. Ada drank tea.\n\nBob slept."
    config = trained / "lcf_config.json"
    found = json.loads(config.read_text())
    counts = {}
    for spans in ("paragraph", "sentence", "window:8"):
        found["metadata"]["prompts"] |= {"spans": spans, "share_question": False}
        config.write_text(json.dumps(found))
        counts[spans] = Channel.from_pretrained(trained).send(text).spans
    assert (counts["paragraph"], counts["sentence"]) == (2, 3)
    assert counts["window:8"] > 3


def test_a_batch_gives_what_its_rows_give(channel: Channel) -> None:
    texts, questions = [FACTS, FACTS[:1], "owns bob lamp .\nlikes ada tea ."], ["likes ada", "who", "owns bob"]
    together = channel.send_batch(texts, questions)
    alone = [channel.send(text, question) for text, question in zip(texts, questions, strict=True)]
    assert [message.spans for message in together] == [message.spans for message in alone] == [4, 2, 3]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-4)
    several = [together[0], [together[1], together[2]], together[2]]
    own = [[], "hides finn kite .", FACTS]
    answers = channel.receive_batch(several, questions, own, max_new_tokens=5)
    for answer, message, question, text in zip(answers, several, questions, own, strict=True):
        single = channel.receive(message, question, text, max_new_tokens=5)
        assert (answer.text, answer.prompt_tokens) == (single.text, single.prompt_tokens)
    assert len(channel.receive_batch(together, questions)) == 3


def test_sides_load_one_model_only(trained: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    whole = Channel.from_pretrained(trained)
    for side, other in (("sharer", "qwen3"), ("receiver", "llama")):
        folder = tmp_path / f"only-{side}"
        shutil.copytree(trained, folder)
        config = folder / "lcf_config.json"
        config.write_text(config.read_text().replace(str(model_folders[other]), "/nowhere/at/all"))
    sharer = Channel.from_pretrained(tmp_path / "only-sharer", sides="sharer")
    receiver = Channel.from_pretrained(tmp_path / "only-receiver", sides="receiver")
    sent = sharer.send(FACTS, "likes ada").to_bytes()
    assert sent == whole.send(FACTS, "likes ada").to_bytes()
    message = Message.from_bytes(sent, origin=receiver.origin)
    assert receiver.receive(message, "likes ada").text == whole.receive(message, "likes ada").text
    with pytest.raises(SettingError, match="no receiver; load it with sides='both' or sides='receiver'"):
        sharer.receive(message, "likes ada")
    with pytest.raises(SettingError, match="this channel has no sharer"):
        receiver.send(FACTS)
    with pytest.raises(SettingError, match="sides='left' must be both, sharer or receiver"):
        Channel.from_pretrained(trained, sides="left")  # type: ignore[arg-type]


def test_where_both_read_the_same_the_sharers_side_needs_the_receivers_tokenizer_only(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small_module(spec("llama"), spec("qwen3"), pooler=None)
    module.adapter.save_pretrained(tmp_path / "shared")
    loaded: list[str] = []

    def noted(spec: ModelSpec, device: str) -> FrozenModel:
        loaded.append(Path(spec.path).name)
        return load_frozen(spec, device)

    tokenizers: list[str] = []
    monkeypatch.setattr("lcf_lightning.sides.load_frozen", noted)
    monkeypatch.setattr(
        "lcf_lightning.writer.load_tokenizer", lambda spec: (tokenizers.append(spec.path), load_tokenizer(spec))[1]
    )
    sharer = Channel.from_pretrained(tmp_path / "shared", sides="sharer")
    receiver = Channel.from_pretrained(tmp_path / "shared", sides="receiver")
    assert loaded == ["llama", "qwen3"]
    message = sharer.send(FACTS, "likes ada")
    answer = receiver.receive(message, "likes ada", FACTS, max_new_tokens=3)
    assert message.spans == answer.prompt_tokens - 1
    batch = sharer.send_batch([FACTS, []], ["likes ada", "who"])
    assert len(tokenizers) == 1
    assert torch.equal(batch[0].keys, message.keys) or torch.allclose(batch[0].keys, message.keys, atol=1e-5)
    assert len(receiver.receive_batch(batch, ["likes ada", "who"], [FACTS, []], max_new_tokens=2)) == 2
    with pytest.raises(SettingError, match="pooled=true must be false with pooler=null, where nothing is pooled"):
        sharer.send(FACTS, "likes ada", pooled=True)
    with pytest.raises(MessageError, match="message of another text: where both models read the same"):
        receiver.receive([message, message], "likes ada", FACTS)
    again = Message.from_bytes(message.to_bytes("float16"))
    assert again.prompt == message.prompt is not None
    assert receiver.receive(again, "likes ada", FACTS, max_new_tokens=3).prompt_tokens == answer.prompt_tokens


@pytest.mark.parametrize(
    ("sharer", "receiver"), [("gemma3", "llama"), ("qwen2", "gemma3"), ("qwen3", "qwen3"), ("llama", "qwen2")]
)
def test_pairs_of_every_family(spec: Spec, sharer: str, receiver: str, tmp_path: Path) -> None:
    small_module(spec(sharer), spec(receiver), layers=(0, 1)).adapter.save_pretrained(tmp_path / "adapter")
    channel = Channel.from_pretrained(tmp_path / "adapter")
    message = channel.send(FACTS, "likes ada")
    answer = channel.receive(Message.from_bytes(message.to_bytes()), "likes ada", FACTS[1:], max_new_tokens=4)
    assert message.keys.shape[0] == 2
    assert answer.new_tokens in range(1, 5)
    assert answer.text == channel.receive(message, "likes ada", FACTS[1:], max_new_tokens=4).text


def test_closed_and_pruned_layers_do_not_travel(spec: Spec, tmp_path: Path) -> None:
    adapter = small_module(spec("llama"), spec("qwen3")).adapter
    with torch.no_grad():
        adapter.gates.logits[1:3] = -1.0
    adapter.save_pretrained(tmp_path / "closed")
    keep_layers(adapter, (0, 3)).save_pretrained(tmp_path / "pruned")
    channels = [Channel.from_pretrained(tmp_path / name) for name in ("closed", "pruned")]
    messages = [channel.send(FACTS, "likes ada") for channel in channels]
    assert messages[0].keys.shape == (2, 1, 2, 4, 8)
    assert messages[0].to_bytes() == messages[1].to_bytes()
    answers = [channel.receive(message, "likes ada") for channel, message in zip(channels, messages, strict=True)]
    assert answers[0].text == answers[1].text
    assert channels[0].receive(messages[1], "likes ada").text == answers[0].text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(spec: Spec, tmp_path: Path, dtype: str) -> None:
    """Models and adapter in half precision; what overflows in the cache is refused, though its edit is finite."""
    pair = [ModelSpec(spec(name).path, dtype=dtype) for name in ("llama", "qwen3")]
    adapter = small_module(*pair).adapter
    adapter.save_pretrained(tmp_path / "whole")
    adapter.to(torch.float16 if dtype == "float16" else torch.bfloat16).save_pretrained(tmp_path / "half")
    whole, half = (Channel.from_pretrained(tmp_path / name) for name in ("whole", "half"))
    for channel in (whole, half):
        message = channel.send(FACTS, "likes ada")
        arrived = Message.from_bytes(message.to_bytes("float16"), origin=channel.origin)
        assert message.keys.dtype == channel.adapter.gates.logits.dtype
        assert channel.receive(arrived, "likes ada", max_new_tokens=3).new_tokens in (1, 2, 3)
    with torch.no_grad():
        for last in whole.adapter.fuser.last_maps:
            for parameter in last.parameters():
                parameter.mul_(1e6)
    if dtype == "float16":
        with pytest.raises(MessageError, match="edits the receiver's cache to values that are not finite"):
            whole.receive(
                replace(message, keys=message.keys.float(), values=message.values.float(), origin=whole.origin), "q"
            )


def test_pooled_messages_stand_alone(channel: Channel) -> None:
    whole, pooled = channel.send(FACTS, "likes ada"), channel.send(FACTS, "likes ada", pooled=True)
    assert (whole.pooled, pooled.pooled, Message.from_bytes(pooled.to_bytes()).pooled) == (False, True, True)
    for several in ([whole, pooled], [pooled, pooled]):
        with pytest.raises(MessageError, match="a pooled message stands alone; of several sharers each must send with"):
            channel.receive(several, "likes ada")


def test_threads_share_a_channel(channel: Channel) -> None:
    asked = [(FACTS, "likes ada"), (FACTS[:1], "who"), (FACTS, "owns bob")] * 8

    def answer(asks: tuple[list[str], str]) -> str:
        return "".join(channel.receive(channel.send(*asks), asks[1], max_new_tokens=4, stream=True))

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(answer, asked)] == [*map(answer, asked)]
