from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lcf_lightning import Channel, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import ContextMismatchDataModule
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.answering import run_arms
from lcf_lightning.evaluation.arms import ArmCaches, receiver_reading
from lcf_lightning.evaluation.text_baseline import decoded, reading_prompts, text_prompts, write_texts
from tests.pairs import small_data, small_module

TINY = ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver")
TINY_PROMPTS = PromptSettings(
    context="{passages} ", separator=" ", question="question {question} ?", text_request="message", text="{text} "
)


@pytest.fixture
def channel(spec: Callable[[str], ModelSpec]) -> Channel:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    return module.channel


@pytest.fixture
def batch(spec: Callable[[str], ModelSpec]) -> Batch:
    data = small_data(spec("llama"), spec("qwen3"))
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_the_text_is_the_sharers_own_greedy_continuation(channel: Channel, batch: Batch) -> None:
    read, last = text_prompts(channel, batch.prompts, batch.examples)
    written = write_texts(channel, channel.read_sharer(read), last, 7)
    tokenizer = channel.sharer.tokenizer
    for row, example in enumerate(batch.examples):
        facts = "".join(f"{fact[0]}\n" for fact in example.sharer)
        request = batch.prompts.text_request.replace("{question}", example.question)
        prompt = tokenizer(f"{facts}\n{request}", return_tensors="pt")
        plain = channel.sharer.model.generate(**prompt, max_new_tokens=7, do_sample=False, pad_token_id=0)
        expected = plain[0, prompt["input_ids"].shape[1] :]
        assert torch.equal(written[row, : len(expected)], expected)
    assert written.shape == (len(batch), 7)


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(channel: Channel, batch: Batch) -> None:
    alone, shared, short = (ArmCaches(channel, batch) for _ in range(3))
    shared.write(9)
    short.write(2)
    assert receiver_reading(alone, "t2t_4").texts == receiver_reading(shared, "t2t_4").texts
    four, nine = (receiver_reading(shared, arm).texts for arm in ("t2t_4", "t2t_9"))
    assert four != nine
    assert receiver_reading(short, "t2t_9").texts == nine


def test_the_receiver_reads_the_text_before_its_own_context(channel: Channel, batch: Batch) -> None:
    read, last = reading_prompts(channel, batch.prompts, batch.examples, ["Told."] * len(batch))
    tokenizer = channel.receiver.tokenizer
    for row, example in enumerate(batch.examples):
        own = "".join(f"{fact[0]}\n" for fact in example.receiver)
        whole = tokenizer(f"Told.\n{own}\n {example.question}")["input_ids"]
        assert read.ids[row][read.mask[row]].tolist() + last[row].tolist() == whole


def test_the_text_does_not_push_the_receivers_context_out(spec: Callable[[str], ModelSpec], channel: Channel) -> None:
    data = small_data(
        spec("llama"), spec("qwen3"), prompts=PromptSettings(question=" {question}", max_receiver_tokens=60)
    )
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    read, _ = reading_prompts(channel, batch.prompts, batch.examples, ["far too long a text " * 9] * len(batch))
    assert read.ids.shape[1] > 60
    for row, example in enumerate(batch.examples):
        text = channel.receiver.tokenizer.decode(read.ids[row][read.mask[row]])
        assert all(word in text.replace(" ", "") for word in example.receiver[0][0].split())


def test_the_tiny_pair_talks_in_words() -> None:
    """The embedded sharer lists its facts, the embedded receiver reads them: the text baseline is a real one."""
    data = ContextMismatchDataModule(World(test_size=64), *TINY, eval_batch_size=64, prompts=TINY_PROMPTS)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module = small_module(*TINY)
    module.configure_model()
    answers = run_arms(ArmCaches(module.channel, batch), ["own_context", "t2t_50", "t2t_4"], 4)
    right = {
        arm: [a.exact_match for a in answers if a.arm == arm and a.needs_sharer]
        for arm in ("own_context", "t2t_50", "t2t_4")
    }
    accuracy = {arm: sum(values) / len(values) for arm, values in right.items()}
    assert accuracy["t2t_50"] >= 0.9
    assert accuracy["own_context"] < accuracy["t2t_4"] < 0.6  # four tokens hold one of four facts
    texts = [answer.text for answer in answers if answer.arm == "t2t_50"]
    assert texts[0].split() == " ".join(passage[0] for passage in batch.examples[0].sharer).split()
    ids = module.channel.sharer.tokenizer("likes ada tea", return_tensors="pt")["input_ids"]
    assert decoded(module.channel, ids, 3)[0] in "likes ada tea"
