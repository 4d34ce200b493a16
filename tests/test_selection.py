"""A sharer that sends only the tokens of its passages that its question pays most attention to (``send_tokens``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.data.tokens import Encoded, pad_left
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.latency import batches_of_one, measure
from lcf_lightning.fitting import fit_pooler
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.models.spec import load_tokenizer
from lcf_lightning.selection import attention_paid, most_attended
from tests.pairs import channel_of, small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
PROMPTS = PromptSettings(question=" {question}", send_tokens=3)
FACTS = ["likes ada tea .", "owns ben lamp ."]


def carry(spec: Spec) -> tuple[LCFModule, Batch]:
    """A pair that carries three tokens of a text, and five examples."""
    module = small_module(spec("llama"), spec("qwen3"), pooler="carry", gate_noise="none", dropout=0.0)
    module.configure_model()
    data = small_data(spec("llama"), spec("qwen3"), prompts=PROMPTS)
    data.setup("fit")
    data.setup("test")
    fit_pooler(module.link, data.read_by_both(4))
    module.adapter.eval()
    return module, next(iter(data.test_dataloader()))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@torch.no_grad()
def test_attention_is_what_the_model_pays_when_it_reads_the_whole_text(spec: Spec, family: str) -> None:
    """Beside padding, of rows that ask with more tokens and fewer, also where a layer's window slides."""
    frozen = load_frozen(spec(family))
    torch.manual_seed(0)
    ids, lengths, begins = torch.randint(5, 250, (2, 30)), (30, 22), (21, 25)
    mask = torch.arange(30) >= 30 - torch.tensor(lengths)[:, None]
    asks = torch.arange(30) >= torch.tensor(begins)[:, None]
    usual = frozen.model.config._attn_implementation
    paid = attention_paid(frozen.model, prefill(frozen.model, ids, mask), ids, asks)
    assert frozen.model.config._attn_implementation == usual
    frozen.model.set_attn_implementation("eager")
    for row, (length, begin) in enumerate(zip(lengths, begins, strict=True)):
        start = 30 - length
        output = frozen.model(input_ids=ids[row : row + 1, start:], output_attentions=True)
        whole = torch.cat(output.attentions, dim=1)[0, :, begin - start :].sum(1)
        torch.testing.assert_close(paid[row, :, start:begin], whole[:, : begin - start], atol=1e-4, rtol=1e-4)
        assert not torch.cat([paid[row, :, :start], paid[row, :, begin:]], dim=1).any()
    frozen.model.set_attn_implementation(usual)


@torch.no_grad()
def test_the_question_is_not_sent_and_neighbours_count(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = load_frozen(spec("llama"))
    rows = [Encoded([7] * 12, [-1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1]), Encoded([7] * 3, [0, 0, -1])]
    tokens = pad_left(rows, 0)
    paid = torch.zeros(2, 3, 12)
    paid[0, 0, [0, 1, 10]] = torch.tensor([99.0, 9.0, 99.0])  # beside a sink and the question: one token
    paid[0, 1, [0, 6]] = torch.tensor([99.0, 0.01])  # heads that look elsewhere have as much of a say
    paid[0, 2, [0, 7]] = torch.tensor([99.0, 0.01])
    asked: list[torch.Tensor] = []
    monkeypatch.setattr("lcf_lightning.selection.attention_paid", lambda *given: asked.append(given[3]) or paid)
    cache = prefill(frozen.model, tokens.ids, tokens.mask)
    sent = most_attended(frozen.model, cache, tokens.ids, tokens.spans, 3)
    assert asked[0][0].nonzero().flatten().tolist() == [9, 10, 11]  # and what a chat template may add
    assert sent[0].nonzero().flatten().tolist() == [5, 6, 7]
    assert sent[1].nonzero().flatten().tolist() == [9, 10]  # there is nothing else
    everything = most_attended(frozen.model, cache, tokens.ids, tokens.spans, 99)
    assert everything[0].nonzero().flatten().tolist() == list(range(1, 9))


@torch.no_grad()
def test_a_message_is_those_tokens_of_the_whole_message(spec: Spec) -> None:
    """The same in an evaluation, of other examples' messages, in a batch and alone; their bytes are counted."""
    module, batch = carry(spec)
    caches = ArmCaches(module.link, module.writer, batch)
    whole = module.link.pool(module.link.read_sharer(replace(batch.sharer, send=None)), batch.index)
    assert caches.summaries.present.sum(1).tolist() == caches.partner_message.present.sum(1).tolist() == [3] * 5
    channel = channel_of(module)
    channel.prompts = PROMPTS
    for row, example in enumerate(batch.examples):
        message = channel.send([fact for (fact,) in example.sharer], example.question)
        assert message.spans == 3
        torch.testing.assert_close(message.keys[:, 0], caches.summaries.kv.keys[:, row], atol=1e-4, rtol=1e-4)
        apart = torch.cdist(message.values[0, 0, 0], whole.kv.values[0, row, 0]).amin(1)
        assert apart.max() < 1e-3
    single = batches_of_one(module.link, module.writer, PROMPTS, batch.examples[:1])
    sent = measure(module.link, module.writer, single, [], 2, repeats=1, warmup=0)["arms"]["message"]["sent_bytes"]
    message = channel.send([fact for (fact,) in batch.examples[0].sharer], batch.examples[0].question)
    assert sent == {dtype: len(message.to_bytes(dtype)) for dtype in sent}


@pytest.mark.parametrize("pooler", ["span", "prefix", "carry"])
def test_a_fit_sends_what_is_sent_later(spec: Spec, pooler: str, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    module = small_module(*pair, pooler=pooler)
    before = [part.clone() for part in module.adapter.parameters()]
    data = small_data(*pair, prompts=PROMPTS)
    small_trainer(tmp_path).fit(module, datamodule=data)
    assert any(not torch.equal(one, two) for one, two in zip(before, module.adapter.parameters(), strict=True))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module.eval()
    every = replace(batch, sharer=replace(batch.sharer, send=None))
    few, all_ = (
        find_arm("message").reading(ArmCaches(module.link, module.writer, each)).cache for each in (batch, every)
    )
    assert few.values[0].shape != all_.values[0].shape or not torch.equal(few.values[0], all_.values[0])


@torch.no_grad()
def test_permuted_deals_what_is_sent(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each span keeps its size, and the question's tokens are in none."""
    module = small_module(spec("llama"), spec("qwen3"), pooler="prefix", gate_noise="none")
    module.configure_model()
    data = small_data(spec("llama"), spec("qwen3"), prompts=PROMPTS)
    data.setup("test")
    caches = ArmCaches(module.eval().link, module.writer, next(iter(data.test_dataloader())))
    pooled, pool = [], module.link.pool
    monkeypatch.setattr(module.link, "pool", lambda cache, index: pooled.append(index) or pool(cache, index))
    find_arm("permuted").reading(caches)
    sent = caches.sharer.spans_sent(caches.batch.index)
    for mine, dealt in zip(sent, caches.sharer.spans_sent(pooled[-1]), strict=True):
        assert torch.equal(mine.sort().values, dealt.sort().values)


def test_bad_settings_are_named(spec: Spec) -> None:
    with pytest.raises(SettingError, match="send_tokens=0 must be at least 1"):
        PromptSettings(send_tokens=0)
    with pytest.raises(SettingError, match="send_tokens=3 must be null where share_question is false"):
        PromptSettings(send_tokens=3, share_question=False)
    module, _ = carry(spec)
    channel = channel_of(module)
    channel.prompts = PROMPTS
    with pytest.raises(SettingError, match="question=None must be given where send_tokens=3"):
        channel.send(FACTS)
    tokenizer = load_tokenizer(spec("llama"))
    with pytest.raises(SettingError, match="send_tokens=3 must be null where both models read the same text"):
        SharedCollator.of(PROMPTS, tokenizer, tokenizer)
