from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import ContextMismatchDataModule
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.latency import batches_of_one
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.evaluation.text_baseline import read_ahead, reading_prompts, text_prompts, write_texts
from tests.pairs import small_data, small_module

TINY = ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver")
TINY_PROMPTS = PromptSettings(
    context="{passages} ", separator=" ", question="question {question} ?", text_request="message", text="{text} "
)


def test_the_text_is_the_sharers_own_greedy_continuation(module: LCFModule, batch: Batch) -> None:
    read, last = text_prompts(module.link, module.writer, batch.prompts, batch.examples)
    ids = write_texts(module.link, module.link.read_sharer(read), last, 7)
    tokenizer = module.link.sharer.tokenizer
    for row, example in enumerate(batch.examples):
        facts = "".join(f"{fact[0]}\n" for fact in example.sharer)
        request = batch.prompts.text_request.replace("{question}", example.question)
        prompt = tokenizer(f"{facts}\n{request}", return_tensors="pt")
        plain = module.link.sharer.model.generate(**prompt, max_new_tokens=7, do_sample=False, pad_token_id=0)
        expected = plain[0, prompt["input_ids"].shape[1] :]
        assert torch.equal(ids[row, : len(expected)], expected)
    assert ids.shape == (len(batch), 7)


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(module: LCFModule, batch: Batch) -> None:
    alone, shared, short = (ArmCaches(module.link, module.writer, batch) for _ in range(3))
    shared.write(9)
    short.write(2)
    assert find_arm("t2t_4").reading(alone).texts == find_arm("t2t_4").reading(shared).texts
    four, nine = (find_arm(arm).reading(shared).texts for arm in ("t2t_4", "t2t_9"))
    assert four != nine
    assert find_arm("t2t_9").reading(short).texts == nine


@pytest.mark.parametrize("place", ["after", "before"])
def test_the_receiver_reads_the_text_beside_its_own_context(module: LCFModule, batch: Batch, place: str) -> None:
    """After it by default: a receiver can read its own context while the text is being written."""
    assert batch.prompts.text_place == "after"
    prompts = replace(batch.prompts, text_place=place)
    read, _, last = reading_prompts(module.link, module.writer, prompts, batch.examples, ["Told."] * len(batch))
    tokenizer = module.link.receiver.tokenizer
    for row, example in enumerate(batch.examples):
        own = "".join(f"{fact[0]}\n" for fact in example.receiver)
        context = f"{own}\nTold.\n" if place == "after" else f"Told.\n{own}\n"
        whole = tokenizer(f"{context} {example.question}")["input_ids"]
        assert read.ids[row][read.mask[row]].tolist() + last[row].tolist() == whole


def test_the_text_does_not_push_the_receivers_context_out(spec: Callable[[str], ModelSpec], module: LCFModule) -> None:
    data = small_data(
        spec("llama"), spec("qwen3"), prompts=PromptSettings(question=" {question}", max_receiver_tokens=60)
    )
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    read, _, _ = reading_prompts(
        module.link, module.writer, batch.prompts, batch.examples, ["far too long a text " * 9] * len(batch)
    )
    assert read.ids.shape[1] > 60
    for row, example in enumerate(batch.examples):
        text = module.link.receiver.tokenizer.decode(read.ids[row][read.mask[row]])
        assert all(word in text.replace(" ", "") for word in example.receiver[0][0].split())


def test_the_tiny_pair_talks_in_words() -> None:
    """The embedded sharer lists its facts, the embedded receiver reads them: the text baseline is a real one."""
    data = ContextMismatchDataModule(World(test_size=64), *TINY, eval_batch_size=64, prompts=TINY_PROMPTS)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module = small_module(*TINY)
    module.configure_model()
    answers = run_arms(ArmCaches(module.link, module.writer, batch), ["own_context", "t2t_50", "t2t_4"], 4)
    right = {
        arm: [a.exact_match for a in answers if a.arm == arm and a.needs_sharer]
        for arm in ("own_context", "t2t_50", "t2t_4")
    }
    accuracy = {arm: sum(values) / len(values) for arm, values in right.items()}
    assert accuracy["t2t_50"] >= 0.9
    assert accuracy["own_context"] < accuracy["t2t_4"] < 0.6  # four tokens hold one of four facts
    texts = [answer.text for answer in answers if answer.arm == "t2t_50"]
    assert texts[0].split() == " ".join(passage[0] for passage in batch.examples[0].sharer).split()
    ids = module.link.sharer.tokenizer("likes ada tea", return_tensors="pt")["input_ids"]
    assert module.writer.texts(ids[:, :3], "sharer")[0] in "likes ada tea"


def test_a_text_is_read_once_for_arms_that_follow_each_other(
    module: LCFModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With form and without, and under a larger budget where the texts end before the smaller one."""
    caches, read = ArmCaches(module.link, module.writer, batch), []
    plain = module.link.read_receiver
    ids = caches.write(6)
    caches._text_ids = ids.index_fill(1, torch.tensor([3, 4, 5]), module.link.sharer.stop_ids[0])
    assert caches.own_context is not None  # read before the count begins
    monkeypatch.setattr(module.link, "read_receiver", lambda tokens: read.append(tokens) or plain(tokens))
    arms = ["t2t_4", "t2t_4_form", "t2t_6", "t2t_6_form", "t2t_2", "full_context", "full_context_form"]
    losses = {row.arm: row.loss for row in run_arms(caches, arms, 2) if row.id == batch.ids[0]}
    assert len(read) == 3
    assert losses["t2t_4"] == losses["t2t_6"] != losses["t2t_2"]
    fresh = ArmCaches(module.link, module.writer, batch)
    (alone, *_) = run_arms(fresh, ["full_context_form"], 2)
    assert alone.loss == pytest.approx(losses["full_context_form"], abs=1e-5)


def test_what_is_read_ahead_is_the_own_context_and_no_more(module: LCFModule, batch: Batch) -> None:
    for example in batch.examples:
        (single,) = batches_of_one(module.link, module.writer, batch.prompts, [example])
        told, _, _ = reading_prompts(module.link, module.writer, batch.prompts, [example], ["Told."])
        ahead = read_ahead(single, told)
        context = "".join(f"{fact[0]}\n" for fact in example.receiver)
        assert ahead == len(module.link.receiver.tokenizer(f"{context}\n")["input_ids"])
        before = replace(single, prompts=replace(batch.prompts, text_place="before"))
        assert read_ahead(before, told) == 0
