"""Arms, choices and pruning where both models read the same text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from lcf_lightning import LCFModule, ModelSpec, SharedContextDataModule
from lcf_lightning.adapter.subset import keep_layers
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Knowledge, MultipleChoice
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.audit import audit
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.layer_importance import Pruning, choose, curve, rank_layers
from lcf_lightning.evaluation.markdown import pruning_page, to_markdown
from lcf_lightning.evaluation.plots import pruning_figure
from lcf_lightning.evaluation.prediction import answer_losses, run_arms
from lcf_lightning.evaluation.report import build_report
from lcf_lightning.link import Link
from lcf_lightning.models.cache import continue_from, prefill
from lcf_lightning.models.loading import FrozenModel
from tests.evaluation.answers import answer
from tests.pairs import SHARED_ARMS, small_module

Spec = Callable[[str], ModelSpec]
PROMPTS = PromptSettings(question="{question}?")


@pytest.fixture
def module(spec: Spec) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"), pooler=None, unrotate_keys=False)
    module.configure_model()
    module.adapter.eval()
    return module


def batch_of(spec: Spec, **world: int) -> Batch:
    data = SharedContextDataModule(
        Knowledge(test_size=6, **world), spec("llama"), spec("qwen3"), eval_batch_size=6, prompts=PROMPTS
    )
    data.setup("test")
    return next(iter(data.test_dataloader()))


def plain_choice(reader: FrozenModel, question: str, choices: tuple[str, ...], chat: bool = False) -> str:
    """The choice of highest log probability per byte, from one plain forward pass each."""
    scores = []
    for choice in choices:
        text = f"<|user|>\n{question}?\n<|assistant|>\n" if chat else f"{question}?"
        prompt = reader.tokenizer(text)["input_ids"]
        ids = reader.tokenizer(choice if chat else f" {choice}", add_special_tokens=False)["input_ids"]
        logits = reader.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        likelihood = sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(ids))
        scores.append(likelihood / len(choice.encode()))
    return choices[scores.index(max(scores))]


@pytest.mark.parametrize("arm", ["sharer_alone", "own_context"])
@torch.no_grad()
def test_a_model_alone_chooses_as_a_plain_forward_does(module: LCFModule, spec: Spec, arm: str) -> None:
    batch = batch_of(spec)
    reader = module.link.sharer if arm == "sharer_alone" else module.link.receiver
    rows = run_arms(ArmCaches(module.link, module.writer, batch), [arm], 4)
    expected = [plain_choice(reader, example.question, example.choices) for example in batch.examples]
    assert [row.prediction for row in rows] == expected
    assert len(set(expected)) > 1
    for row, example in zip(rows, batch.examples, strict=True):
        assert row.exact_match == row.f1 == float(row.prediction == example.answers[0])
        assert (row.listening is None) == (arm == "sharer_alone")


@pytest.mark.parametrize("answer_with", ["letter", "text"])
@pytest.mark.parametrize("arm", ["sharer_alone", "own_context"])
@torch.no_grad()
def test_letters_and_chats_are_scored_as_a_plain_forward_scores_them(
    module: LCFModule, spec: Spec, tmp_path: Path, arm: str, answer_with: str
) -> None:
    choices = ["a long way off", "far", "near the river", "here"]
    rows = [{"id": f"{i}", "question": f"Where is {who}", "choices": choices[i % 3 :], "answer": 0}
            for i, who in enumerate(["Mary", "the sharer", "John", "it", "the cat"])]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = MultipleChoice(test=str(tmp_path / "rows.jsonl"), answer_with=answer_with)
    prompts = PromptSettings(question="{question}?", chat=True)
    data = SharedContextDataModule(source, spec("llama"), spec("qwen3"), eval_batch_size=5, prompts=prompts)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    reader = module.link.sharer if arm == "sharer_alone" else module.link.receiver
    expected = [plain_choice(reader, row.question, row.choices, chat=True) for row in batch.examples]
    assert [row.prediction for row in run_arms(ArmCaches(module.link, module.writer, batch), [arm], 4)] == expected
    assert {row.answers[0] for row in batch.examples} <= ({"A"} if answer_with == "letter" else set(choices))


def test_noise_is_the_same_in_any_batch(module: LCFModule, spec: Spec) -> None:
    batch = batch_of(spec)
    longer = replace(batch.examples[0], id="long", question="hides something for a long time " * 3)
    examples = (*batch.examples[:2], longer)
    collator = module.writer.collator(PROMPTS)
    together = run_arms(ArmCaches(module.link, module.writer, collator.train(examples)), ["noise"], 4)
    for row, single in zip(together, examples, strict=True):
        (alone,) = run_arms(ArmCaches(module.link, module.writer, collator.train([single])), ["noise"], 4)
        assert row.loss == pytest.approx(alone.loss, abs=1e-4)
        assert row.prediction == alone.prediction


def test_fewer_choices_in_one_row_are_never_outvoted_by_padding(module: LCFModule, spec: Spec) -> None:
    batch = batch_of(spec)
    short = replace(batch.examples[0], choices=batch.examples[0].answers)
    mixed = replace(batch, examples=(short, *batch.examples[1:]))
    rows = run_arms(ArmCaches(module.link, module.writer, mixed), ["message"], 4)
    plain = run_arms(ArmCaches(module.link, module.writer, batch), ["message"], 4)
    assert rows[0].exact_match == 1.0
    assert [row.prediction for row in rows[1:]] == [row.prediction for row in plain[1:]]


def test_open_questions_are_answered_in_words_and_may_stand_beside_choices(module: LCFModule, spec: Spec) -> None:
    batch, opened = batch_of(spec), batch_of(spec, choices=0)
    words = [row.prediction for row in run_arms(ArmCaches(module.link, module.writer, opened), ["message"], 4)]
    chosen = [row.prediction for row in run_arms(ArmCaches(module.link, module.writer, batch), ["message"], 4)]
    mixed = replace(batch, examples=(*opened.examples[:3], *batch.examples[3:]))
    assert [row.prediction for row in run_arms(ArmCaches(module.link, module.writer, mixed), ["message"], 4)] == words[
        :3
    ] + chosen[3:]
    assert not set(words) & set(chosen)


def test_every_arm_has_its_own_cache(module: LCFModule, spec: Spec) -> None:
    caches = ArmCaches(module.link, module.writer, batch_of(spec))
    rows = run_arms(caches, SHARED_ARMS, 4)
    losses = {arm: tuple(row.loss for row in rows if row.arm == arm) for arm in SHARED_ARMS}
    assert len(set(losses.values())) == len(SHARED_ARMS)
    assert all(row.partner_answers == () for row in rows)
    found = audit(rows)
    assert found["follow"] is None
    assert set(found["listening"]) == set(SHARED_ARMS) - {"sharer_alone"}
    assert "gain_over_sharer_alone" in found["comparisons"]


@pytest.mark.parametrize("arm", ["question_only", "full_context", "self"])
def test_arms_that_mean_nothing_here_are_refused(module: LCFModule, spec: Spec, arm: str) -> None:
    with pytest.raises(SettingError, match=f"arm '{arm}' needs a sharer and a receiver that read different texts"):
        find_arm(arm).reading(ArmCaches(module.link, module.writer, batch_of(spec)))


def test_the_sharers_text_can_be_read_here_too(module: LCFModule, spec: Spec) -> None:
    rows = run_arms(ArmCaches(module.link, module.writer, batch_of(spec)), ["t2t_3", "own_context"], 4)
    assert all(row.text or row.arm == "own_context" for row in rows)
    assert {row.arm: row.loss for row in rows[::-1]}["t2t_3"] != rows[-1].loss


# Reports


def test_benchmarks_and_optimal_routing() -> None:
    rows = []
    for name, outcomes in {"arc": [(1, 0, 1), (0, 1, 0), (0, 0, 1)], "mmlu": [(1, 1, 1)]}.items():
        for place, scores in enumerate(outcomes):
            for arm, right in zip(("sharer_alone", "own_context", "message"), scores, strict=True):
                rows.append(answer(f"{name}/{place}", arm, float(right), benchmark=name))
    report = build_report(rows, None, {})
    assert {name: found["value"] for name, found in report["optimal_routing"].items()} == {
        "all": 0.75, "arc": pytest.approx(2 / 3), "mmlu": 1.0
    }  # fmt: skip
    assert report["benchmarks"]["arc"]["message"]["exact_match"]["value"] == pytest.approx(2 / 3)
    assert report["arms"]["message"]["exact_match"]["value"] == 0.75  # weighted by size, not the mean of two
    page = to_markdown(report)
    assert "| arm | all (n = 4) | arc (n = 3) | mmlu (n = 1) |" in page
    assert "| optimal routing | 0.750 [" in page
    assert build_report([row for row in rows if row.arm != "sharer_alone"], None, {})["optimal_routing"] == {}
    own = [answer("own/0", arm, 1.0, benchmark="own", needs_sharer=False) for arm in ("sharer_alone", "own_context")]
    assert "| mmlu (n = 1) | own (n = 0) |" in to_markdown(build_report([*rows, *own], None, {}))


# Pruning


def test_importance_is_the_loss_without_the_layer(module: LCFModule, spec: Spec) -> None:
    batch = batch_of(spec)
    with torch.no_grad():
        module.adapter.gates.logits[2] = -1.0
        importance = rank_layers(module.link, module.writer, [batch])
        everything = fmean(
            answer_losses(module.link, ArmCaches(module.link, module.writer, batch).message, batch).tolist()
        )
        assert set(importance) == {0, 1, 3}
        for layer, rise in importance.items():
            kept = module.adapter.gates.logits[layer].clone()
            module.adapter.gates.logits[layer] = -1.0
            without = fmean(
                answer_losses(module.link, ArmCaches(module.link, module.writer, batch).message, batch).tolist()
            )
            module.adapter.gates.logits[layer] = kept
            assert rise == pytest.approx(without - everything, abs=1e-6)


def test_the_curve_scores_what_the_pruned_adapter_would(module: LCFModule, spec: Spec) -> None:
    batch = batch_of(spec)
    importance = {0: 0.3, 1: 0.1, 2: -0.2, 3: 0.2}
    points = curve(module.link, module.writer, [batch], importance, [0, 2, 4], 4)
    assert [point["layers"] for point in points] == [[], [0, 3], [0, 1, 2, 3]]
    pruned = Link(module.link.sharer, module.link.receiver, keep_layers(module.adapter, [0, 3]))
    rows = run_arms(ArmCaches(pruned, module.writer, batch), ["message"], 4)
    assert points[1]["loss"] == pytest.approx(fmean(row.loss for row in rows), abs=1e-6)
    assert points[1]["exact_match"] == fmean(row.exact_match for row in rows)
    alone = run_arms(ArmCaches(module.link, module.writer, batch), ["own_context"], 4)
    assert points[0]["loss"] == pytest.approx(fmean(row.loss for row in alone), abs=1e-6)
    sizes = [point["megabytes"] for point in points]
    assert sizes[0] == 0
    assert sizes[2] == pytest.approx(2 * sizes[1])


def test_only_layers_that_help_are_kept() -> None:
    importance = {0: 0.3, 1: 0.1, 2: -0.2, 3: 0.2}
    assert choose(importance, 2) == [0, 3]
    assert choose(importance, 4) == [0, 1, 3]
    with pytest.raises(SettingError, match="keep=0 must be at least 1"):
        choose(importance, 0)
    with pytest.raises(SettingError, match="no layer of this adapter helps"):
        choose({0: -0.1, 1: 0.0}, 1)


def test_pruning_is_shown_as_page_and_picture(module: LCFModule, spec: Spec) -> None:
    importance = {0: 0.3, 1: 0.1, 3: 0.2}
    points = curve(module.link, module.writer, [batch_of(spec)], importance, [0, 1, 3], 4)
    page = pruning_page(Pruning(closed=[2], importance=importance, kept=[0], curve=points))
    assert "| 1 (kept) |" in page
    assert "0: +0.3000, 3: +0.2000, 1: +0.1000" in page
    assert "without effect: 2." in page
    figure = pruning_figure(points, [0])
    assert len(figure.axes) == 2  # one axis a panel
    assert all(axes.lines[0].get_xdata().tolist() == [0, 1, 3] for axes in figure.axes)
    assert len(figure.axes[0].containers) == 1  # the intervals
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.split(",")[0] for text in legend] == ["receiver alone", "kept: 1", "message arm"]


def test_aligned_tokens_are_rounded_as_on_the_wire(spec: Spec, module: LCFModule) -> None:
    batch = batch_of(spec)
    caches = ArmCaches(module.link, module.writer, batch)
    whole, rounded = (find_arm(arm).reading(caches).cache for arm in ("message", "message_int4"))
    assert not torch.equal(whole.values[0], rounded.values[0])
    torch.testing.assert_close(whole.values[0], rounded.values[0], atol=0.1, rtol=0.1)


@torch.no_grad()
def test_what_begins_an_answer_is_read_on_the_edited_cache(module: LCFModule, spec: Spec) -> None:
    """As C2C reads it: each token is read once the tokens before it have been edited; letters are scored behind it."""
    prompts = replace(PROMPTS, answer_prefix=" The answer is", answer=" {answer}")
    pair = spec("llama"), spec("qwen3")
    data = SharedContextDataModule(Knowledge(test_size=2), *pair, eval_batch_size=1, prompts=prompts)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    link, example = module.link, batch.examples[0]
    (row,) = run_arms(ArmCaches(link, module.writer, batch), ["message"], 4)
    own = link.receiver.tokenizer
    ids = torch.tensor([own(f"{example.question}?")["input_ids"]])
    said = torch.tensor([link.sharer.tokenizer(f"{example.question}?")["input_ids"]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    message = link.pool(prefill(link.sharer.model, said, torch.ones_like(said, dtype=torch.bool)), batch.index)
    cache = link.fuse(prefill(link.receiver.model, ids, everything), message)
    scores = []
    for choice in example.choices:
        more = torch.tensor([own(f" The answer is {choice}", add_special_tokens=False)["input_ids"]])
        logits = continue_from(link.receiver.model, cache, more, torch.ones_like(more, dtype=torch.bool)).logits()[0]
        begun = len(own(" The answer is", add_special_tokens=False)["input_ids"])
        picked = logits.log_softmax(-1)[:-1].gather(1, more[0, 1:, None])[begun - 1 :]
        scores.append(float(picked.sum()) / len(f" {choice}".encode()))
    assert row.prediction == example.choices[max(range(len(scores)), key=scores.__getitem__)]
