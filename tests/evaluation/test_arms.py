from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from lcf_lightning import LCFModule, Message, ModelSpec
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import Arm, default_arms, find_arm, readable, require_arms
from lcf_lightning.evaluation.arms.noise import moment_matched_noise
from lcf_lightning.evaluation.arms.text_to_text import TextToText
from lcf_lightning.evaluation.audit import audit
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.latency import measure
from lcf_lightning.evaluation.markdown import latency_page
from lcf_lightning.evaluation.prediction import Prediction, answer_losses, jensen_shannon, run_arms
from lcf_lightning.models.geometry import KV
from tests.pairs import ARMS, channel_of, small_data, small_module

Spec = Callable[[str], ModelSpec]
MESSAGES = ("message", "mismatched", "zero", "self", "noise")


def losses(module: LCFModule, batch: Batch, arm: str) -> torch.Tensor:
    return answer_losses(module.link, find_arm(arm).reading(ArmCaches(module.link, module.writer, batch)), batch)


def answers_of(caches: ArmCaches, *arms: str) -> dict[str, list[Prediction]]:
    """The answers by arm, without the arms' names, so that they can be compared."""
    rows = run_arms(caches, arms, 4)
    return {
        arm: [
            replace(row, arm="", partner="", partner_answers=(), partner_needs_sharer=True)
            for row in rows
            if row.arm == arm
        ]
        for arm in arms
    }


@pytest.mark.parametrize(
    ("arm", "passages"),
    [("question_only", ()), ("own_context", ("receiver",)), ("full_context", ("sharer", "receiver"))],
)
def test_arms_of_text_equal_plain_transformers(
    module: LCFModule, batch: Batch, arm: str, passages: tuple[str, ...]
) -> None:
    """Cross entropy from the arm's cache equals that of the whole text read in one forward, padding and all."""
    tokenizer, model = module.link.receiver.tokenizer, module.link.receiver.model
    measured = losses(module, batch, arm)
    for row, example in enumerate(batch.examples):
        texts = ["".join(passage) for side in passages for passage in getattr(example, side)]
        text = "".join(f"{text}\n" for text in texts) + ("\n" if texts else "") + f" {example.question}"
        prompt = torch.tensor(tokenizer(text)["input_ids"])
        answer = batch.answers[row][batch.answer_mask[row]]
        with torch.no_grad():
            logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        assert measured[row].item() == pytest.approx(F.cross_entropy(logits, answer).item(), abs=1e-4)
    assert len(set(measured.tolist())) == len(batch)


def test_mismatched_is_the_partners_message(module: LCFModule, batch: Batch) -> None:
    collator = module.writer.collator(batch.prompts)
    swapped = collator.evaluate([(partner, partner) for partner in batch.partners])
    caches = ArmCaches(module.link, module.writer, batch)
    partners_message = caches.receives(ArmCaches(module.link, module.writer, swapped).summaries).cache
    assert torch.equal(find_arm("mismatched").reading(caches).cache.values[0], partners_message.values[0])
    assert not torch.equal(partners_message.values[0], caches.message.cache.values[0])


def test_mismatched_by_the_matching_message_changes_nothing(module: LCFModule, batch: Batch) -> None:
    """The audit's identity: with its own message as the wrong one, both arms answer alike and the gain is zero."""
    caches = ArmCaches(module.link, module.writer, replace(batch, partners=batch.examples))
    by_arm = answers_of(caches, "message", "mismatched")
    assert by_arm["message"] == by_arm["mismatched"]
    gain = audit(run_arms(caches, ["message", "mismatched"], 4))["comparisons"]["content_attributable_gain"]
    assert (gain["gain"]["value"], gain["gain"]["low"], gain["gain"]["high"]) == (0, 0, 0)
    assert gain["gain_f1"]["value"] == 0


def test_closed_gates_give_every_message_arm_the_own_context_answer(spec: Spec, batch: Batch) -> None:
    module = small_module(spec("llama"), spec("qwen3"), gate_init=-1.0)
    module.configure_model()
    module.adapter.eval()
    by_arm = answers_of(ArmCaches(module.link, module.writer, batch), *MESSAGES, "own_context")
    assert len(by_arm) == 6
    for arm in MESSAGES:
        assert by_arm[arm] == by_arm["own_context"]


def test_open_gates_tell_the_messages_apart(module: LCFModule, batch: Batch) -> None:
    measured = [losses(module, batch, arm) for arm in (*MESSAGES, "own_context")]
    assert all(not torch.equal(one, other) for one, other in combinations(measured, 2))
    assert all(torch.isfinite(loss).all() for loss in measured)


def test_a_zero_message_is_zero_and_self_reads_the_receivers_context(module: LCFModule, batch: Batch) -> None:
    sent = []
    caches = ArmCaches(module.link, module.writer, batch)
    caches.receives = lambda message: sent.append(message)  # type: ignore[assignment, method-assign, return-value, func-returns-value]
    for arm in ("zero", "self"):
        find_arm(arm).reading(caches)
    assert not any(tensor.any() for tensor in sent[0].kv)
    mirrored = [replace(example, sharer=example.receiver) for example in batch.examples]
    expected = ArmCaches(module.link, module.writer, module.writer.collator(batch.prompts).train(mirrored)).summaries
    assert torch.equal(sent[1].kv.values, expected.kv.values)
    assert sent[0].kv.keys.shape == sent[1].kv.keys.shape == caches.summaries.kv.keys.shape


def test_self_without_anything_to_read_is_refused(module: LCFModule, batch: Batch) -> None:
    nothing = replace(batch, examples=tuple(replace(example, receiver=()) for example in batch.examples))
    hidden = replace(nothing, prompts=replace(batch.prompts, share_question=False))
    assert len(run_arms(ArmCaches(module.link, module.writer, nothing), ["self"], 2)) == len(
        batch
    )  # the question is something
    with pytest.raises(SettingError, match="share_question=false: a receiver that has read nothing"):
        run_arms(ArmCaches(module.link, module.writer, hidden), ["self"], 2)
    assert default_arms(False, nothing.prompts, nothing.examples) == ARMS
    assert set(ARMS) - set(default_arms(False, hidden.prompts, batch.examples)) == {"other_text"}
    assert set(ARMS) - set(default_arms(False, hidden.prompts, hidden.examples)) == {"self", "other_text"}


def test_noise_has_the_messages_moments_and_depends_on_the_example_alone() -> None:
    torch.manual_seed(0)
    message = KV(torch.randn(3, 4, 2, 5, 6) * 7 + 2, torch.randn(3, 4, 2, 5, 6))
    noise = moment_matched_noise(message, ["a", "b", "c", "d"], torch.ones(4, 5).bool())
    for mine, theirs in zip(noise, message, strict=True):
        torch.testing.assert_close(mine.mean((-2, -1)), theirs.mean((-2, -1)))
        torch.testing.assert_close(mine.std((-2, -1)), theirs.std((-2, -1)))
        assert torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1].abs() < 0.95
    alone = moment_matched_noise(KV(message.keys[:, 2:3], message.values[:, 2:3]), ["c"], torch.ones(1, 5).bool())
    torch.testing.assert_close(alone.keys[:, 0], noise.keys[:, 2])
    assert not torch.allclose(noise.keys[:, 0].sort(-1).values, noise.keys[:, 1].sort(-1).values)


def test_answers_carry_what_is_needed_to_score_again(module: LCFModule, batch: Batch) -> None:
    arms = ("own_context", "mismatched", "t2t_3")
    answers = run_arms(ArmCaches(module.link, module.writer, batch), arms, 4)
    assert [answer.id for answer in answers] == batch.ids * 3
    assert [answer.arm for answer in answers] == [arm for arm in arms for _ in range(len(batch))]
    for answer, example, partner in zip(answers, batch.examples * 3, batch.partners * 3, strict=True):
        assert answer.answers == example.answers
        assert answer.needs_sharer == example.needs_sharer
        assert answer.exact_match <= answer.f1 <= 1
        assert answer.partner_answers == (partner.answers if answer.arm == "mismatched" else ())
        assert (answer.listening < 1e-6) == (answer.arm == "own_context")


def test_training_batches_have_no_mismatched_arm(module: LCFModule, batch: Batch) -> None:
    with pytest.raises(SettingError, match=r"batch\.partners is missing"):
        run_arms(ArmCaches(module.link, module.writer, replace(batch, partners=())), ["mismatched"], 2)
    assert run_arms(ArmCaches(module.link, module.writer, replace(batch, partners=())), ["message"], 2)


def test_listening_is_the_jensen_shannon_divergence() -> None:
    """Against scipy's distance, which is its root."""
    one, other = (torch.randn(3, 11, dtype=torch.double).log_softmax(-1) for _ in range(2))
    expected = [jensenshannon(p.exp(), q.exp()) ** 2 for p, q in zip(one, other, strict=True)]
    assert jensen_shannon(one, other).tolist() == pytest.approx(expected)
    apart = torch.tensor([[0.0, -1e9]]), torch.tensor([[-1e9, 0.0]])
    assert jensen_shannon(*apart).item() == pytest.approx(math.log(2))
    assert jensen_shannon(one, one).tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def test_arm_names() -> None:
    assert [find_arm(arm).budget for arm in ("t2t_50", "t2t_1", "message")] == [50, 1, 0]
    assert [find_arm(arm).label for arm in ("t2t_50", "own_context")] == ["T2T-50", "own context"]
    assert readable("gain_over_t2t_50") == "gain over T2T-50"
    require_arms([*ARMS, "t2t_7"])


def test_an_own_arm_that_a_report_could_not_show_is_refused() -> None:
    for fields in ({"name": "h.5"}, {"family": "controls"}):
        with pytest.raises(SettingError, match="arm Odd: name=.* and family=.* one of message, control, text"):
            type("Odd", (Arm,), {"name": "odd", "family": "control", **fields})


class Noise(Arm):
    """Called as one of the package."""

    name = "noise"
    family = "control"

    def read(self, caches: ArmCaches) -> Reading:
        return caches.own_context


class Written(TextToText):
    """A text arm of one's own: timed, with a budget, under a name of its own."""

    def __init__(self, budget: int = 2) -> None:
        super().__init__(budget)
        self.name, self.comparisons = "written", ()

    @classmethod
    def named(cls, name: str) -> Arm | None:
        return cls() if name == "written" else None


def test_an_own_arm_needs_a_name_of_its_own() -> None:
    with pytest.raises(SettingError, match="test_arms.Noise is called 'noise', as another arm is"):
        require_arms(["message", f"{__name__}.Noise"])


def test_a_timed_arm_of_ones_own_is_reported(module: LCFModule, spec: Spec) -> None:
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    batches = list(data.test_dataloader())[:2]
    (own,) = require_arms([f"{__name__}.Written"])
    latency = measure(module.link, module.writer, batches, [own, "t2t_2"], 2, repeats=1, warmup=0)
    assert set(latency["arms"]) == {"message", "written", "t2t_2"}
    assert set(latency["ttft_vs_t2t"]) == {"2"}
    assert "| written |" in latency_page(latency)


@pytest.mark.parametrize("pooler", ["span", "prefix"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_message_of_fewer_bytes_is_read_as_it_comes_off_the_wire(
    spec: Spec, batch: Batch, dtype: str, pooler: str
) -> None:
    module = small_module(spec("llama"), spec("qwen3"), pooler=pooler)
    module.configure_model()
    module.eval()
    caches = ArmCaches(module.link, module.writer, batch)
    found = find_arm(f"message_{dtype}").reading(caches).cache
    channel = channel_of(module)
    channel.prompts = batch.prompts
    for row, example in enumerate(batch.examples):
        sent = channel.send([fact for (fact,) in example.sharer], example.question)
        received = Message.from_bytes(sent.to_bytes(dtype))
        alone = ArmCaches(module.link, module.writer, module.writer.collator(batch.prompts).train([example]))
        summaries = Summaries(KV(received.keys, received.values), torch.ones(1, received.spans, dtype=torch.bool))
        expected = alone.receives(module.link.merge(summaries)).cache
        tokens = int(expected.mask.sum())
        torch.testing.assert_close(
            found.values[0][row, :, -tokens:], expected.values[0][0, :, -tokens:], atol=1e-4, rtol=1e-4
        )
    assert not torch.equal(found.values[0], caches.message.cache.values[0])
    assert f"message_{dtype}" not in default_arms(False, batch.prompts, batch.examples)
