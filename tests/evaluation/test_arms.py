from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lcf_lightning import Channel, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import ARMS, ArmCaches, answer_losses, run_arms
from tests.pairs import small_data, small_module

Spec = Callable[[str], ModelSpec]


@pytest.fixture
def channel(spec: Spec) -> Channel:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    module.adapter.eval()
    return module.channel


@pytest.fixture
def batch(spec: Spec) -> Batch:
    data = small_data(spec("llama"), spec("qwen3"))
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_own_and_full_context_equal_plain_transformers(channel: Channel, batch: Batch) -> None:
    """Cross entropy from the arm's cache equals that of the whole text read in one forward, padding and all."""
    model, caches = channel.receiver.model, ArmCaches(channel, batch)
    for arm, tokens in (("own_context", batch.receiver), ("full_context", batch.full)):
        losses = answer_losses(channel, getattr(caches, arm), batch)
        for row in range(len(batch)):
            prompt = torch.cat([tokens.ids[row][tokens.mask[row]], batch.last[row]])
            answer = batch.answers[row][batch.answer_mask[row]]
            with torch.no_grad():
                logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, answer)
            assert losses[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_mismatched_is_the_partners_message(channel: Channel, batch: Batch) -> None:
    swapped = replace(batch, sharer=batch.mismatched, mismatched=batch.sharer)
    caches, other = ArmCaches(channel, batch), ArmCaches(channel, swapped)
    assert torch.equal(caches.mismatched.values[0], other.message.values[0])
    assert not torch.equal(caches.mismatched.values[0], caches.message.values[0])


def test_mismatched_by_the_matching_message_changes_nothing(channel: Channel, batch: Batch) -> None:
    """The audit's identity: with its own message as the wrong one, both arms answer alike."""
    caches = ArmCaches(channel, replace(batch, mismatched=batch.sharer))
    by_arm = {arm: [a for a in run_arms(caches, ["message", "mismatched"], 4) if a.arm == arm] for arm in ARMS}
    for matching, wrong in zip(by_arm["message"], by_arm["mismatched"], strict=True):
        assert replace(matching, arm="") == replace(wrong, arm="")
    assert len(by_arm["message"]) == len(batch)


def test_answers_carry_what_is_needed_to_score_again(channel: Channel, batch: Batch) -> None:
    answers = run_arms(ArmCaches(channel, batch), ARMS, 4)
    assert [answer.id for answer in answers] == batch.ids * 4
    assert [answer.arm for answer in answers] == [arm for arm in ARMS for _ in range(len(batch))]
    for answer, example in zip(answers, batch.examples * 4, strict=True):
        assert answer.answers == example.answers
        assert answer.needs_sharer == example.needs_sharer
        assert answer.exact_match <= answer.f1 <= 1


def test_training_batches_have_no_mismatched_arm(channel: Channel, batch: Batch) -> None:
    caches = ArmCaches(channel, replace(batch, mismatched=None, full=None))
    with pytest.raises(SettingError, match="batch.mismatched is missing"):
        run_arms(caches, ["mismatched"], 2)
    with pytest.raises(SettingError, match="batch.full is missing"):
        run_arms(caches, ["full_context"], 2)
