"""Controls that hold everything but one thing: the form of answers, and the places of the content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lcf_lightning import LCFModule, ModelSpec, SharedContextDataModule
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Knowledge
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import default_arms, find_arm
from lcf_lightning.evaluation.arms.permuted import dealt
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from tests.pairs import small_module

Spec = Callable[[str], ModelSpec]


@pytest.fixture(params=["span", "prefix"])
def module(request: pytest.FixtureRequest, spec: Spec) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"), pooler=request.param)
    module.configure_model()
    module.adapter.eval()
    return module


@pytest.mark.parametrize("text", ["t2t_4", "full_context"])
def test_form_is_the_text_and_another_examples_message(module: LCFModule, batch: Batch, text: str) -> None:
    caches = ArmCaches(module.link, module.writer, batch)
    plain, formed = find_arm(text).reading(caches), find_arm(f"{text}_form").reading(caches)
    expected = module.link.fuse(plain.cache, caches.partner_message)
    assert all(torch.equal(one, other) for one, other in zip(formed.cache.values, expected.values, strict=True))
    assert torch.equal(formed.last, plain.last)
    assert (formed.texts, formed.partners) == (plain.texts, batch.partners)
    rows = run_arms(caches, [text, f"{text}_form"], 4)
    losses = {arm: [row.loss for row in rows if row.arm == arm] for arm in (text, f"{text}_form")}
    assert losses[text] != losses[f"{text}_form"]
    assert find_arm(f"{text}_form").without_form == text


def test_only_texts_have_a_form(module: LCFModule, batch: Batch) -> None:
    for arm in ("message_form", "own_context_form", "t2t_4_form_form", "_form"):
        with pytest.raises(SettingError, match=f"arm '{arm}' must be one or more of"):
            find_arm(arm)
    assert [find_arm(arm).label for arm in ("t2t_50_form", "full_context_form")] == [
        "T2T-50 + form",
        "full context + form",
    ]


def test_a_text_says_whether_the_budget_ended_it(module: LCFModule, batch: Batch) -> None:
    caches = ArmCaches(module.link, module.writer, batch)
    ids, (end, *_) = caches.write(6).clone(), module.link.sharer.stop_ids
    ids[0, 2:], ids[1, 5:] = end, end
    caches._text_ids = ids
    rows = {budget: run_arms(caches, [f"t2t_{budget}"], 2) for budget in (2, 3, 6)}
    assert [row.text_cut for row in rows[2]] == [True] * len(batch)
    assert [row.text_cut for row in rows[3]] == [False, *[True] * (len(batch) - 1)]
    assert [row.text_cut for row in rows[6]][:3] == [False, False, True]
    assert [row.text_cut for row in run_arms(caches, ["own_context"], 2)] == [None] * len(batch)


def test_permuted_spans_hold_the_same_tokens(batch: Batch) -> None:
    index = batch.index
    moved = dealt(index, batch.ids)
    assert not torch.equal(moved, index)
    for row, other in zip(index, moved, strict=True):
        assert row.sort().values.tolist() == other.sort().values.tolist()  # each span keeps its size
        assert torch.equal(row < 0, other < 0)  # and what is in none stays out
    assert torch.equal(dealt(index[2:], batch.ids[2:]), moved[2:])  # whatever the batch
    places = torch.arange(7)[None]
    assert not (dealt(places, ["x"]) == places).any()  # nobody keeps its own
    assert not torch.equal(dealt(index[:1], ["another id"]), moved[:1])


def test_the_permuted_message_is_of_the_right_text(module: LCFModule, batch: Batch) -> None:
    caches = ArmCaches(module.link, module.writer, batch)
    expected = module.link.pool(caches.sharer, dealt(batch.index, batch.ids))
    found = find_arm("permuted").reading(caches)
    assert torch.equal(found.cache.values[0], caches.receives(expected).cache.values[0])
    assert not torch.equal(found.cache.values[0], caches.message.cache.values[0])


def test_where_one_span_is_all_nothing_can_be_permuted(batch: Batch) -> None:
    single = [replace(example, sharer=example.sharer[:1]) for example in batch.examples]
    hidden = replace(batch.prompts, share_question=False)
    assert "permuted" in default_arms(False, batch.prompts, single)  # the question is the other one
    assert "permuted" not in default_arms(False, hidden, single)
    assert "permuted" in default_arms(False, hidden, batch.examples)
    assert "permuted" in default_arms(False, replace(hidden, spans="sentence"), single)  # a passage has several


def test_where_both_read_the_same_text_tokens_change_places(spec: Spec) -> None:
    prompts = PromptSettings(question="{question}?")
    data = SharedContextDataModule(
        Knowledge(test_size=6), spec("llama"), spec("qwen3"), eval_batch_size=6, prompts=prompts
    )
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module = small_module(spec("llama"), spec("qwen3"), pooler=None, unrotate_keys=False)
    module.configure_model()
    module.adapter.eval()
    assert len({len(example.question) for example in batch.examples}) > 1  # some rows are padded
    rows = run_arms(ArmCaches(module.link, module.writer, batch), ["message", "permuted"], 4)
    for example in batch.examples:
        single = module.writer.collator(prompts).train([example])
        (alone,) = run_arms(ArmCaches(module.link, module.writer, single), ["permuted"], 4)
        ours = {row.arm: row for row in rows if row.id == example.id}
        assert ours["permuted"].loss == pytest.approx(alone.loss, abs=1e-4)  # padding is never dealt
        assert ours["permuted"].loss != ours["message"].loss


def test_the_other_text_is_read_with_the_own_question(module: LCFModule, batch: Batch) -> None:
    """Its message is the one that an example of the partner's passages and this question would get."""
    caches = ArmCaches(module.link, module.writer, batch)
    found = find_arm("other_text").reading(caches)
    swapped = [
        replace(row, shared=(), sharer=partner.sharer_reads)
        for row, partner in zip(batch.examples, batch.partners, strict=True)
    ]
    alike = module.writer.collator(batch.prompts).collate(swapped, [1] * len(batch))
    message = module.link.pool(module.link.read_sharer(alike.sharer), alike.index)
    expected = module.link.fuse(caches.own_context.cache, message)
    torch.testing.assert_close(found.cache.keys[0], expected.keys[0])
    assert not torch.equal(found.cache.keys[0], caches.receives_partners().cache.keys[0])
    hidden = replace(batch.prompts, share_question=False)
    assert "other_text" in default_arms(False, batch.prompts, batch.examples)
    assert "other_text" not in default_arms(False, hidden, batch.examples)
    with pytest.raises(SettingError, match="needs batches of the evaluation loaders"):
        find_arm("other_text").reading(ArmCaches(module.link, module.writer, replace(batch, partners=())))
