"""Nothing in a training step or in `Channel.receive` waits for the device, but for what transformers itself asks.

On the CPU a profile counts the operations that would: a number of a tensor that the host reads. What runs within a
forward or a ``generate`` of transformers is left out by its ancestor in the profile, `THEIRS`; our own stopping
criterion within it is not. On a GPU torch itself refuses to synchronise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from lcf_lightning.callbacks import GateMonitor
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import GenerationMixin

from lcf_lightning import Channel, LCFModule, Message, ModelSpec, SharedContextDataModule
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Knowledge
from lcf_lightning.models import cache, decoding
from tests.pairs import channel_of, small_data, small_module

Spec = Callable[[str], ModelSpec]
OURS, THEIRS = "ours", "transformers"
LOOKS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}
"""Operations that wait for a device to tell the host something."""
KINDS: dict[str, dict[str, Any]] = {
    "span": {"pooler": "span"},
    "prefix": {"pooler": "prefix"},
    "carry": {"pooler": "carry"},
    "send_tokens": {"pooler": "carry", "send_tokens": 3},
    "LCF": {"pooler": None},
    "C2C": {"pooler": None, "fuser": "c2c"},
}


def within(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, found in a profile under ``label``."""

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return call(*args, **kwargs)

    return labelled


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[str]]:
    """From a call to the operations of ours in it that ask the device."""
    monkeypatch.setattr("lcf_lightning.models.cache.forward", within(THEIRS, cache.forward))
    monkeypatch.setattr(GenerationMixin, "generate", within(THEIRS, GenerationMixin.generate))
    monkeypatch.setattr(decoding._Progress, "__call__", within(OURS, decoding._Progress.__call__))

    def found(call: Callable[[], object]) -> list[str]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            within(OURS, call)()
        asked = []
        for event in seen.events() or ():
            parent = event.cpu_parent
            while parent is not None and parent.name not in (OURS, THEIRS):
                parent = parent.cpu_parent
            if event.name in LOOKS and parent is not None and parent.name == OURS:
                asked.append(event.name)
        return asked

    return found


@pytest.fixture
def step(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LCFModule, Batch]]:
    """From a kind of adapter to a module that can take a training step without a Trainer, and a batch for it."""
    for module in ("lcf_lightning.module", "lcf_lightning.callbacks.gates"):
        monkeypatch.setattr(f"{module}.is_logged", lambda trainer: True)
    for name, value in {"global_step": 3, "global_rank": 0, "temperature": 0.5, "trainer": None}.items():
        monkeypatch.setattr(LCFModule, name, value)
    monkeypatch.setattr(LCFModule, "log", lambda *_, **__: None)

    def build(kind: str, device: str = "cpu") -> tuple[LCFModule, Batch]:
        settings = dict(KINDS[kind])
        prompts = PromptSettings(question=" {question}", send_tokens=settings.pop("send_tokens", None))
        pair = spec("llama"), spec("llama") if settings["pooler"] == "carry" else spec("qwen3")
        module = small_module(*pair, unrotate_keys=settings["pooler"] is not None, **settings).to(device)
        module.configure_model()
        data: PairDataModule = small_data(*pair, prompts=prompts)
        if settings["pooler"] is None:
            data = SharedContextDataModule(Knowledge(), *pair, batch_size=4, eval_batch_size=4)
        data.setup("fit")
        return module, next(iter(data.evaluation_loader("train", limit=4))).to(device)

    return build


def train(module: LCFModule, batch: Batch) -> None:
    module.training_step(batch, 0).backward()
    module.on_after_backward()
    GateMonitor().on_train_batch_end(_Trainer(), module, None, batch, 0)  # type: ignore[arg-type]


class _Trainer:
    """What `GateMonitor` asks of one between its pictures."""

    global_step, is_global_zero = 1, True


def heard(channel: Channel) -> Callable[[], object]:
    """A `receive` of what has come over the wire."""
    facts = "likes ada tea .\nowns ben lamp ."
    message = channel.send(() if channel.link.shared else facts, "likes ada")
    arrived = Message.from_bytes(message.to_bytes(), origin=channel.origin)
    assert channel.opened.numel()
    return lambda: channel.receive(arrived, "likes ada", max_new_tokens=3)


def test_each_rank_draws_noise_of_its_own_and_always_the_same(
    step: Callable[..., tuple[LCFModule, Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = step("span")

    def loss(rank: int) -> float:
        monkeypatch.setattr(LCFModule, "global_rank", rank)
        return float(module.training_step(batch, 0))

    first, second = loss(0), loss(1)
    assert first != second
    assert (loss(0), loss(1)) == (first, second)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("span", "LCF") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_no_step_of_training_and_no_answer_asks_the_device(
    kind: str, step: Callable[..., tuple[LCFModule, Batch]], looks: Callable[[Callable[[], object]], list[str]]
) -> None:
    module, batch = step(kind)
    assert looks(lambda: train(module, batch)) == []
    channel = channel_of(module.eval())
    channel.prompts = batch.prompts
    assert looks(heard(channel)) == []


def test_what_asks_the_device_is_counted(
    step: Callable[..., tuple[LCFModule, Batch]], looks: Callable[[Callable[[], object]], list[str]]
) -> None:
    """An index that nobody has counted, prompts that nobody has looked at, a boolean mask."""
    module, batch = step("span")
    read = module.link.read_sharer(batch.sharer)
    assert len(looks(lambda: module.link.pool(read, batch.index))) >= 2
    assert looks(lambda: module.link.pool(read, batch.index, batch.extent)) == []
    assert looks(lambda: module.link.read_sharer(replace(batch.sharer, largest=None)))
    assert looks(lambda: batch.answers[batch.answer_mask]) == ["aten::nonzero"]


@contextmanager
def _synchronising(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which this machine lacks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_never_synchronised(
    kind: str, step: Callable[..., tuple[LCFModule, Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers does may synchronise, and the end of an answer, which is read then."""
    module, batch = step(kind, "cuda")

    def free(call: Callable[..., Any]) -> Callable[..., Any]:
        def may(*args: Any, **kwargs: Any) -> Any:
            with _synchronising("default"):
                return call(*args, **kwargs)

        return may

    monkeypatch.setattr("lcf_lightning.models.cache.forward", free(cache.forward))
    monkeypatch.setattr(GenerationMixin, "generate", free(GenerationMixin.generate))
    monkeypatch.setattr(decoding.Decoder, "_answers", free(decoding.Decoder._answers))
    train(module, batch)  # what is made once, at first
    with _synchronising("error"):
        train(module, batch)
    channel = channel_of(module.eval())
    channel.prompts = batch.prompts
    receive = heard(channel)
    receive()
    with _synchronising("error"):
        receive()
