"""All of `generate`'s decoding options on an edited cache, and answers piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.errors import SettingError
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.decoding import _until, cut, generate
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.receiving import decoder
from tests.pairs import small_module

Spec = Callable[[str], ModelSpec]
FACTS = ["likes ada tea .", "owns bob lamp .", "seeks cleo ruby ."]
QUESTIONS = ["likes ada", "who fears the wolf of gia", "owns bob"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
    {"do_sample": True, "temperature": 1.5, "top_k": 40},
    {"do_sample": True, "top_p": 0.8, "num_beams": 2},
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 12},
    {"bad_words_ids": [[65], [66], [67]]},
]


def saved(spec: Spec, folder: Path, receiver: str, gate: float) -> Channel:
    module = small_module(spec("llama"), spec(receiver), gate_init=gate)
    module.adapter.save_pretrained(folder)
    return Channel.from_pretrained(folder)


@pytest.fixture
def channel(spec: Spec, tmp_path: Path) -> Channel:
    return saved(spec, tmp_path / "adapter", "qwen3", 1.0)


@pytest.fixture
def message(channel: Channel) -> Message:
    return channel.send(FACTS, "likes ada")


@pytest.mark.parametrize("receiver", ["qwen3", "gemma3"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "greedy")
def test_without_an_edit_every_option_does_what_it_does_in_generate(
    spec: Spec, tmp_path: Path, receiver: str, options: dict[str, Any]
) -> None:
    """With closed gates the receiver answers as if it had read its prompt itself: a batch, padded."""
    channel = saved(spec, tmp_path / "adapter", receiver, -1.0)
    messages = channel.send_batch([FACTS] * 3, [None] * 3)
    torch.manual_seed(7)
    answers = channel.receive_batch(messages, QUESTIONS, max_new_tokens=12, **options)
    reader, encoder = channel.link.receiver, channel.writer.encoder(channel.prompts, "receiver")
    prompts = [encoder.prompt([], question).ids for question in QUESTIONS]
    padded = reader.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    config = GenerationConfig(
        **{"do_sample": False, "max_new_tokens": 12, "eos_token_id": list(reader.stop_ids), "pad_token_id": 0} | options
    )
    torch.manual_seed(7)
    plain = reader.model.generate(**padded, generation_config=config)[:, padded["input_ids"].shape[1] :]
    texts = reader.tokenizer.batch_decode(plain, skip_special_tokens=True)
    assert [answer.text for answer in answers] == [cut(text, channel.prompts.stop) for text in texts]
    assert [answer.prompt_tokens for answer in answers] == [len(prompt) for prompt in prompts]


def test_an_edit_decodes_as_the_evaluation_does(channel: Channel, message: Message) -> None:
    made = decoder(channel, [message], QUESTIONS[:1], [()], 8, {})
    ours = generate(channel.link.receiver, made.cache, made.ids[:, -1:], 8)
    answer = made.answers()[0]
    text = channel.link.receiver.tokenizer.decode(ours[0], skip_special_tokens=True)
    assert answer.text == cut(text, channel.prompts.stop)
    assert answer.new_tokens == ours.shape[1]


@pytest.mark.parametrize("pad", ["<pad>", "<eos>", "J"])
def test_rows_of_a_batch_end_each_by_itself(channel: Channel, pad: str) -> None:
    """By a stop string, an end of sequence or the limit: text and tokens are those of the row alone."""
    channel.link.receiver.tokenizer.pad_token = pad
    messages = channel.send_batch([FACTS] * 3, [None] * 3)
    alone = [channel.receive(m, q, max_new_tokens=20) for m, q in zip(messages, QUESTIONS, strict=True)]
    for stop in dict.fromkeys("".join(each.text for each in alone)):  # the first that not all reach at once
        options = {"max_new_tokens": 20, "stop_strings": [stop]}
        alone = [channel.receive(m, q, **options) for m, q in zip(messages, QUESTIONS, strict=True)]
        if len({each.new_tokens for each in alone}) > 1:
            break
    together = channel.receive_batch(messages, QUESTIONS, **options)
    assert [(each.text, each.new_tokens) for each in together] == [(each.text, each.new_tokens) for each in alone]
    assert len({each.new_tokens for each in alone}) > 1
    assert together[0].milliseconds is not together[1].milliseconds


def test_an_answer_says_what_it_cost(channel: Channel, message: Message) -> None:
    answer = channel.receive(message, "likes ada", max_new_tokens=5)
    assert str(answer) == answer.text
    assert list(answer.milliseconds) == ["receiver_prefill", "fuse", "first_token", "rest_of_answer"]
    assert all(milliseconds >= 0 for milliseconds in answer.milliseconds.values())
    assert answer.new_tokens <= 5
    # An answer that ends at once has an end of sequence and no text.
    ending = channel.receive(
        message, "likes ada", forced_eos_token_id=channel.link.receiver.stop_ids[0], max_new_tokens=1
    )
    assert (ending.text, ending.new_tokens) == ("", 1)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.5}, {"repetition_penalty": 1.5}])
def test_pieces_make_up_the_answer(channel: Channel, message: Message, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    whole = channel.receive(message, "likes ada", FACTS[1:], max_new_tokens=20, **options)
    torch.manual_seed(1)
    pieces, answer = [], None
    stream = channel.receive(message, "likes ada", FACTS[1:], max_new_tokens=20, stream=True, **options)
    while answer is None:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer = end.value
    assert "".join(pieces).strip() == answer.text == whole.text
    assert answer.new_tokens == whole.new_tokens
    assert len(pieces) > 1
    assert list(answer.milliseconds) == list(whole.milliseconds)


def test_who_stops_listening_ends_the_decoding(channel: Channel, message: Message) -> None:
    before = threading.active_count()
    steps: list[int] = []

    def counted(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool)

    options = {"min_new_tokens": 2_000, "stopping_criteria": [counted]}
    stream = channel.receive(message, "likes ada", max_new_tokens=2_000, stream=True, **options)
    next(stream)
    stream.close()
    assert 1 <= len(steps) < 1_500
    assert threading.active_count() == before


def test_an_error_reaches_who_listens(channel: Channel, message: Message) -> None:
    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise ZeroDivisionError("in the middle")

    stream: Iterator[str] = channel.receive(message, "q", stream=True, stopping_criteria=[broken])
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        list(stream)
    with pytest.raises(SettingError, match=r"decoding options \['num_beams'\]: `streamer` cannot be used with beam"):
        list(channel.receive(message, "q", stream=True, num_beams=2))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temprature": 0.5}, r"^temprature=0\.5 is no decoding option here; did you mean temperature\?$"),
        ({"strem": True}, r"^strem=True is no decoding option here; did you mean stream\?$"),
        ({"stop": "."}, r"^stop='\.' is no decoding option here; did you mean stop_strings\?$"),
        ({"logprobs": 5}, r"^logprobs=5 is no decoding option here; did you mean Channel\.score\?$"),
        ({"output_logits": True}, "^decoding option output_logits is not to be set here"),
        ({"position_ids": torch.zeros(1, 99)}, r"^position_ids=tensor[^\n]+ is no decoding option here\.$"),
        ({"kwargs": 1}, "^kwargs=1 is no decoding option here"),
        ({"streamer": None}, "decoding option streamer is not to be set here"),
        ({"num_return_sequences": 2}, "decoding option num_return_sequences is not to be set here"),
        ({"num_beams": 0}, "num_beams=0 must be a whole number of at least 1"),
        ({"num_beams": 2.5}, "num_beams=2.5 must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be a whole number of at least 1"),
        ({"min_length": 3}, "decoding option min_length is not to be set here"),  # would count a message's tokens
        ({"custom_generate": "a/b"}, "decoding option custom_generate is not to be set here"),
        ({"do_sample": True, "temperature": -1.0}, r"decoding options \['do_sample', 'temperature'\]: .*temperature"),
    ],
)
def test_options_that_are_not_allowed_are_named(
    channel: Channel, message: Message, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SettingError, match=problem):
        channel.receive(message, "likes ada", **options)
    with pytest.raises(SettingError, match=problem):
        list(channel.receive(message, "likes ada", stream=True, **options))


def test_a_models_own_habits_do_not_make_an_answer_random(channel: Channel, message: Message) -> None:
    before = channel.receive(message, "likes ada").text
    channel.link.receiver.model.generation_config.update(do_sample=True, temperature=5.0, top_k=0)
    assert channel.receive(message, "likes ada").text == before
    torch.manual_seed(0)
    assert channel.receive(message, "likes ada", do_sample=True, temperature=5.0).text != before


@pytest.mark.parametrize("stop", [None, "\n", "END", "ab"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_streamed_pieces_end_where_the_whole_text_does(stop: str | None, size: int) -> None:
    for text in ("  a word\nand more", "aab ENEND x", "no stop", "E", "", "xEN", "\n\nlate"):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert "".join(_until(pieces, stop)).strip() == cut(text, stop)


def test_nothing_is_read_behind_the_end() -> None:
    pieces = iter(["one ", "two\n", "three"])
    assert list(_until(pieces, "\n")) == ["one ", "two"]
    assert next(pieces) == "three"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_cache_of_fixed_size_gives_the_same_tokens(spec: Callable[[str], ModelSpec], family: str) -> None:
    """Gemma's layers slide: it has none, and decodes as ever."""
    reader = load_frozen(spec(family))
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :4] = False
    cache = prefill(reader.model, ids, mask)
    kinds: list[str] = []
    hook = reader.model.register_forward_pre_hook(
        lambda _, args, given: kinds.append(type(given.get("cache", given.get("past_key_values"))).__name__),
        with_kwargs=True,
    )
    last = ids[:, -1:]
    plain, static = (generate(reader, cache, last, 8, static_size=size) for size in (None, 64))
    hook.remove()
    assert torch.equal(plain, static)
    assert set(kinds) == ({"DynamicCache"} if family == "gemma3" else {"DynamicCache", "StaticCache"})
