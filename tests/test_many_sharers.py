"""Several sharers of one example: in training and evaluation, and as messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lcf_lightning import AdapterSettings, Channel, LCFModule, Message, ModelSpec
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.models.geometry import KV
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from tests.pairs import ARMS, channel_of, prefills_counted, small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
PROMPTS = PromptSettings(question=" {question}", sharers=3)
FACTS = (("likes ada tea .",), ("owns bob lamp .",), ("seeks cleo ruby .",), ("sells dan soup .",))
EXAMPLES = [
    Example("one", "likes ada", ("tea",), FACTS, (("finds eva bell .",),)),
    Example("two", "owns bob", ("lamp",), FACTS[1:3], ()),
]


@pytest.fixture
def module(spec: Spec) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    module.eval()
    return module


def merged(channel: Channel, messages: list[Message]) -> KV:
    """What the receiver makes of some messages before it fuses them."""
    sides = (torch.cat([getattr(message, side) for message in messages], 3) for side in ("keys", "values"))
    present = torch.ones(1, sum(m.spans for m in messages), dtype=torch.bool)
    return channel.adapter.merge(Summaries(KV(*sides), present)).kv


def test_sharers_of_an_example_are_pooled_as_their_messages_are(module: LCFModule, tmp_path: Path) -> None:
    module.adapter.save_pretrained(tmp_path / "adapter", {"prompts": {"question": " {question}"}})
    channel = Channel.from_pretrained(tmp_path / "adapter")
    batch = module.writer.collator(PROMPTS).collate(EXAMPLES, [2, 2])
    pooled = module.link.pool(module.link.read_sharer(batch.sharer), batch.index).kv
    assert (len(batch), len(batch.sharer.ids), len(batch.index)) == (2, 4, 2)
    for row, example in enumerate(EXAMPLES):
        half = len(example.sharer) // 2
        parts = ([fact for (fact,) in part] for part in (example.sharer[:half], example.sharer[half:]))
        messages = [channel.send(part, example.question) for part in parts]
        for ours, theirs in zip(merged(channel, messages), pooled, strict=True):
            torch.testing.assert_close(ours, theirs[:, row : row + 1], atol=1e-5, rtol=1e-4)


def test_spans_are_counted_over_all_sharers(module: LCFModule) -> None:
    batch = module.writer.collator(PROMPTS).collate(EXAMPLES, [3, 3])
    assert [sorted(set(row.tolist()) - {-1}) for row in batch.index] == [list(range(7)), list(range(5))]
    single = module.writer.collator(PROMPTS).collate(EXAMPLES, [1, 1])
    assert torch.equal(single.index, single.sharer.spans)
    assert torch.equal(single.receiver.ids, batch.receiver.ids)


def test_an_example_draws_its_sharers_and_has_all_in_an_evaluation(module: LCFModule) -> None:
    """Whatever batch it is in: a batch of two processes is that of one."""
    collator = module.writer.collator(PROMPTS)
    rows = [replace(EXAMPLES[0], id=f"{i}") for i in range(60)]
    counts = [len(collator.train([row]).sharer.ids) for row in rows]
    assert set(counts) == {1, 2, 3}
    together = collator.train(rows)
    assert len(together.sharer.ids) == 3 * len(rows)
    said = (together.sharer.spans.reshape(len(rows), 3, -1) >= 0).any(-1).sum(1)
    assert said.tolist() == counts
    pooled, alone = (
        module.link.pool(module.link.read_sharer(batch.sharer), batch.index).kv
        for batch in (together, collator.train(rows[:1]))
    )
    torch.testing.assert_close(pooled.values[:, :1], alone.values, atol=1e-5, rtol=1e-4)
    evaluated: Batch = collator.evaluate([(EXAMPLES[0], EXAMPLES[1]), (EXAMPLES[1], EXAMPLES[0])])
    assert len(evaluated.sharer.ids) == 6


def test_kept_prefills_of_several_sharers_are_those_of_a_fit(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of the training split beforehand is what every epoch reads, in whatever batches."""
    settings = PrefillSettings(str(tmp_path / "prefills"))
    data = small_data(spec("llama"), spec("qwen3"), prompts=PROMPTS)
    data.setup("fit")
    for side in ("sharer", "receiver"):
        store = PrefillStore(settings, load_frozen(spec("llama" if side == "sharer" else "qwen3")))
        for batch in data.evaluation_loader("train"):
            store.read(getattr(batch, side).ids, getattr(batch, side).mask)
    made = prefills_counted(monkeypatch)
    module = LCFModule(spec("llama"), spec("qwen3"), AdapterSettings(d=8), prefills=settings)
    small_trainer(tmp_path, max_steps=40).fit(module, datamodule=data)
    assert module.trainer.current_epoch > 1
    assert made == []


def test_a_sharer_that_reads_nothing_says_nothing(module: LCFModule) -> None:
    blind = module.writer.collator(replace(PROMPTS, share_question=False, sharers=5))
    few = replace(EXAMPLES[1], sharer=FACTS[:2])
    batch = blind.collate([few], [5])
    alone = blind.collate([few], [2])
    pooled = [module.link.pool(module.link.read_sharer(each.sharer), each.index).kv for each in (batch, alone)]
    assert len(batch.sharer.ids) == 5
    for one, other in zip(*pooled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="leaves the sharer of 'two' nothing to tell"):
        blind.collate([replace(few, sharer=())], [5])


class Gradients(pl.Callback):
    """The least gradient of any layer of any tensor at each step."""

    def __init__(self) -> None:
        self.least: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: object) -> None:
        norms = [parameter.grad.flatten(1).norm(dim=1) for parameter in pl_module.parameters()]  # type: ignore[union-attr]
        self.least.append(float(torch.cat(norms).min()))


@pytest.mark.parametrize("settings", [{}, {"pooler": "prefix"}, {"pooler": "prefix", "fuser": "c2c"}])
def test_fit_and_every_arm_run(spec: Spec, tmp_path: Path, settings: dict[str, Any]) -> None:
    data = small_data(spec("llama"), spec("qwen3"), prompts=PROMPTS)
    module, seen = small_module(spec("llama"), spec("qwen3"), **settings), Gradients()
    small_trainer(tmp_path, seen, max_steps=3).fit(module, datamodule=data)
    assert len(seen.least) == 3
    assert seen.least[0] > 0  # later, at a low temperature, a gate may be open or closed for good
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    arms = [arm for arm in ARMS if not arm.startswith("t2t") and arm != "sharer_alone"]
    answers = run_arms(ArmCaches(module.link, module.writer, batch), [*arms, "t2t_4"], 4)
    assert len(answers) == len(batch) * (len(arms) + 1)
    assert len({answer.loss for answer in answers if answer.arm in ("message", "mismatched", "own_context")}) > 3
    with pytest.raises(SettingError, match=r"sharers=3: no sharer alone \(arm sharer_alone\) has read all"):
        run_arms(ArmCaches(module.link, module.writer, batch), ["sharer_alone"], 4)


def test_the_order_of_messages_does_not_matter(module: LCFModule, tmp_path: Path) -> None:
    module.adapter.save_pretrained(tmp_path / "adapter")
    channel = Channel.from_pretrained(tmp_path / "adapter")
    messages = channel.send_batch([[fact] for (fact,) in FACTS], ["likes ada"] * 4)
    forwards, backwards = merged(channel, messages), merged(channel, messages[::-1])
    torch.testing.assert_close(forwards.keys, backwards.keys, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(forwards.values, merged(channel, messages[:2]).values, atol=1e-4)
    answers = [channel.receive(several, "likes ada").text for several in (messages, messages[::-1])]
    assert answers[0] == answers[1]
    assert channel.receive(messages[0], "q").text == channel.receive([messages[0]], "q").text


@torch.no_grad()
def test_every_sharers_spans_become_tokens_of_their_own(spec: Spec) -> None:
    """With the prefix pooler; what one sharer read changes nothing of the others' tokens."""
    module = small_module(spec("llama"), spec("qwen3"), pooler="prefix")
    module.configure_model()
    channel, tokens = channel_of(module.eval()), []
    for facts in (FACTS, (*FACTS[:2], ("hides finn the kite of ada .",), FACTS[0])):
        batch = channel.writer.collator(PROMPTS).collate([replace(EXAMPLES[0], sharer=facts), EXAMPLES[1]], [3, 3])
        sent, own = (
            channel.link.pool(channel.link.read_sharer(batch.sharer), batch.index),
            channel.link.read_receiver(batch.receiver),
        )
        added = channel.link.fuse(own, sent).mask.sum(1) - own.mask.sum(1)
        assert added.tolist() == [2 + 2 + 3, 1 + 2 + 2]  # facts, and the question to each
        tokens.append(channel.link.delta(own, sent))
    for one, other in zip(*tokens, strict=True):
        torch.testing.assert_close(one[:, 0, :, :4], other[:, 0, :, :4], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one[:, 1, :, :5], other[:, 1, :, :5], atol=1e-5, rtol=1e-4)
        assert ((one - other)[:, 0, :, 4:].flatten(1, 2).abs().amax(-1) > 1e-4).any(1).all()


def test_bad_numbers_of_sharers_are_refused(spec: Spec) -> None:
    with pytest.raises(SettingError, match="sharers=0 must be at least 1"):
        PromptSettings(sharers=0)
    module = small_module(spec("llama"), spec("qwen3"), pooler=None)
    module.configure_model()
    with pytest.raises(SettingError, match="sharers=2 must be 1 where both models read the same text"):
        module.writer.collator(replace(PROMPTS, sharers=2))
