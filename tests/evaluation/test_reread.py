"""A receiver that reads its question after the message has come (``prompts.reread``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport

from lcf_lightning import Channel, LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.latency import batches_of_one, measure
from lcf_lightning.evaluation.prediction import answer_losses, run_arms
from lcf_lightning.models.cache import continue_from
from lcf_lightning.models.spec import load_tokenizer
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
PROMPTS = PromptSettings(question=" {question}", reread="question")


def asked(batch: Batch, module: LCFModule, **settings: object) -> Batch:
    """The same examples, whose question is read after the message."""
    prompts = replace(batch.prompts, reread="question", **settings)
    made = module.writer.collator(prompts).collate(batch.examples, [1] * len(batch))
    return replace(made, partners=batch.partners)


def test_without_a_message_it_is_the_same_whenever_the_question_is_read(module: LCFModule, batch: Batch) -> None:
    arms = ["question_only", "own_context", "full_context", "t2t_4"]
    plain, reread = (
        run_arms(ArmCaches(module.link, module.writer, each), arms, 4) for each in (batch, asked(batch, module))
    )
    for one, other in zip(plain, reread, strict=True):
        assert (one.arm, one.id, one.prediction) == (other.arm, other.id, other.prediction)
        assert one.loss == pytest.approx(other.loss, abs=1e-4)


@pytest.mark.parametrize("reread", ["question", "prompt"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@torch.no_grad()
def test_the_question_or_all_of_the_prompt_is_read_behind_the_message(spec: Spec, family: str, reread: str) -> None:
    """As if the message's tokens had been read first: by hand, of one example, and of a batch with padding."""
    module = small_module(spec("llama"), spec(family), pooler="prefix", gate_noise="none")
    module.configure_model()
    module.adapter.eval()
    data = small_data(spec("llama"), spec(family), prompts=replace(PROMPTS, reread=reread))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    caches, link = ArmCaches(module.link, module.writer, batch), module.link
    together = answer_losses(link, caches.message, batch)
    for row, example in enumerate(batch.examples[:2]):
        (single,) = batches_of_one(link, module.writer, batch.prompts, [example])
        whole = link.receiver.tokenizer(f"{example.receiver[0][0]}\n\n {example.question}")["input_ids"]
        ahead = len(link.receiver.tokenizer(f"{example.receiver[0][0]}\n\n")["input_ids"])
        begin = ahead if reread == "question" else 1  # something has to be read ahead
        assert single.receiver.ids[0].tolist() == whole[:begin]
        assert [*single.question.ids[0].tolist(), single.last.item()] == whole[begin:]
        heard = link.fuse(link.read_receiver(single.receiver), link.pool(link.read_sharer(single.sharer), single.index))
        rest = torch.tensor([[*whole[begin:], *single.answers[0, :-1].tolist()]])
        said = continue_from(link.receiver.model, heard, rest, torch.ones_like(rest).bool())
        logits = said.logits(len(whole) - begin - 1)[0].log_softmax(-1)
        loss = -logits.gather(1, single.answers[0][:, None]).mean()
        assert together[row] == pytest.approx(loss.item(), abs=1e-4)
    unseen = Reading(caches.message.cache, batch.last, None)  # the question left out
    assert (answer_losses(link, unseen, batch) - together).abs().min() > 1e-5


def test_training_evaluation_and_channel_agree_and_the_message_learns(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair, pooler="prefix", gate_noise="none", dropout=0.0)
    data = small_data(*pair, prompts=PROMPTS)
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=data)  # which refuses a tensor without gradient
    channel = Channel.from_pretrained(tmp_path / "adapter")
    assert channel.prompts.reread == "question"
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    said = run_arms(ArmCaches(channel.link, channel.writer, batch), ["message", "own_context"], 6)
    for row, example in zip(said, [*batch.examples] * 2, strict=True):
        message = None
        if row.arm == "message":
            message = channel.send([fact for (fact,) in example.sharer], example.question)
        own = [fact for (fact,) in example.receiver]
        answer = channel.receive(message, example.question, own, max_new_tokens=6)
        assert answer.text == row.prediction
        assert "question" in answer.milliseconds
    both = channel.receive_batch([None, message], [example.question] * 2, [own] * 2, max_new_tokens=6)
    assert str(both[0]) == answer.text


def test_form_comes_before_the_question_too(module: LCFModule, batch: Batch) -> None:
    caches = ArmCaches(module.link, module.writer, asked(batch, module))
    text, form = (find_arm(arm).reading(caches) for arm in ("full_context", "full_context_form"))
    assert text.question is form.question is not None
    assert text.question.ids.shape[1] > 0
    assert form.cache.mask.shape == text.cache.mask.shape


def test_what_reading_the_question_takes_is_counted(module: LCFModule, batch: Batch) -> None:
    batches = batches_of_one(module.link, module.writer, asked(batch, module).prompts, batch.examples[:2])
    found = measure(module.link, module.writer, batches, ["own_context", "full_context", "t2t_4"], 3, repeats=1)
    for arm in ("message", "own_context", "full_context"):
        assert found["arms"][arm]["stages"]["question"]["median"] > 0
    times = {stage: spread["median"] for stage, spread in found["arms"]["message"]["stages"].items()}
    assert found["arms"]["message"]["ttft"]["median"] == pytest.approx(
        sum(time for stage, time in times.items() if stage != "rest_of_answer")
    )
    floor = ("sharer_prefill", "receiver_prefill", "question", "first_token")
    assert found["floor"]["median"] == pytest.approx(sum(times[stage] for stage in floor))
    assert "question" not in found["arms"]["t2t_4"]["stages"]  # which reads it with the text


def test_a_prompt_that_begins_with_its_question_has_one_token_ahead(module: LCFModule, batch: Batch) -> None:
    bare = replace(batch, examples=tuple(replace(row, receiver=()) for row in batch.examples))
    made = asked(bare, module)
    assert made.receiver.mask.sum(1).tolist() == [1] * len(batch)
    plain = module.writer.collator(batch.prompts).collate(bare.examples, [1] * len(batch))
    losses = [
        answer_losses(module.link, ArmCaches(module.link, module.writer, each).own_context, each)
        for each in (made, plain)
    ]
    torch.testing.assert_close(*losses)


def test_the_question_counts_against_what_the_receiver_can_see(spec: Spec) -> None:
    """A message and a prompt that fit only without the question are refused."""
    module = small_module(spec("llama"), spec("qwen3"), pooler="prefix")
    module.configure_model()
    data = small_data(spec("llama"), spec("qwen3"), prompts=PROMPTS)
    data.setup("test")
    (batch,) = batches_of_one(module.link, module.writer, PROMPTS, [data.test_dataloader().dataset[0][0]])  # type: ignore[index]
    message = module.link.pool(module.link.read_sharer(batch.sharer), batch.index)
    own, config = module.link.read_receiver(batch.receiver), module.link.receiver.config
    config.max_position_embeddings = own.mask.shape[1] + batch.question.ids.shape[1] + message.present.shape[1] + 1
    module.link.fuse(own, message, question=batch.question)
    config.max_position_embeddings -= 1
    module.link.fuse(own, message)
    with pytest.raises(GeometryError, match="message and prompt are"):
        module.link.fuse(own, message, question=batch.question)


def test_where_both_read_the_same_nothing_is_read_again(spec: Spec) -> None:
    with pytest.raises(SettingError, match="reread='answer' must be one of question, prompt, or null"):
        PromptSettings(reread="answer")
    tokenizers = [load_tokenizer(spec(family)) for family in ("llama", "qwen3")]
    with pytest.raises(SettingError, match="reread='question' must be null where both models read the same text"):
        SharedCollator.of(PROMPTS, *tokenizers)
