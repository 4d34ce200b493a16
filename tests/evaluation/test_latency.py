from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lcf_lightning.evaluation.latency as latency
from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import Knowledge, World
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import TimedRun, find_arm, text_to_text
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.latency import Latency, batches_of_one, measure
from lcf_lightning.evaluation.prediction import run_arms
from lcf_lightning.evaluation.writing import Spread, Writing
from lcf_lightning.link import Link
from lcf_lightning.models.decoding import generate
from lcf_lightning.models.geometry import KV
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.store import PrefillSettings
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.writer import Writer
from tests.pairs import ARMS, channel_of, small_data, small_module

DELAYS = {
    "prefill_sharer": 30.0, "summarise": 2.0, "write_at_once": 230.0, "read_receiver": 40.0, "read_on": 7.0,
    "fuse": 1.0, "token": 5.0,
}  # fmt: skip


@pytest.fixture
def module(request: pytest.FixtureRequest, spec: Callable[[str], ModelSpec]) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"), pooler=getattr(request, "param", "span"))
    with torch.no_grad():
        for last in module.adapter.fuser.last_maps:  # a message that changes what is said
            last.weight.mul_(10)
    module.configure_model()
    module.adapter.eval()
    return module


@pytest.fixture
def clocked(module: LCFModule, monkeypatch: pytest.MonkeyPatch) -> LCFModule:
    """The channel beside a clock that only its stages move, each by a known time in milliseconds."""
    now = [0.0]

    def taking(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any, **kwargs: Any) -> Any:
            now[0] += DELAYS[name] / 1e3
            return call(*args, **kwargs)

        return slowly

    def decode(reader: FrozenModel, *args: Any) -> torch.Tensor:
        def forward(*_: Any) -> None:
            now[0] += DELAYS["token"] / 1e3

        hook = reader.model.register_forward_hook(forward)
        try:
            return generate(reader, *args)
        finally:
            hook.remove()

    for name in ("prefill_sharer", "summarise", "read_receiver", "read_on", "fuse"):
        monkeypatch.setattr(module.link, name, taking(name, getattr(module.link, name)))
    monkeypatch.setattr(text_to_text, "write_at_once", taking("write_at_once", text_to_text.write_at_once))
    monkeypatch.setattr(latency, "generate", decode)
    for texts in (Writer.texts, Writer.encoder):  # what tokenizers do is outside of all times
        monkeypatch.setattr(Writer, texts.__name__, slow_tokenizer(now, texts))
    speed = Spread(median=1.0, min=1.0, max=1.0)
    measured = Writing(budget=4, cache="dynamic", tokens_per_second=speed, to_generate=speed)
    monkeypatch.setattr(latency, "measure_writing", lambda *_: measured)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return module


def slow_tokenizer(now: list[float], call: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*args: Any) -> Any:
        now[0] += 1.0
        return call(*args)

    return slowly


def medians(found: Latency, arm: str) -> dict[str, float]:
    return {stage: spread["median"] for stage, spread in found["arms"][arm]["stages"].items()}


def test_each_stage_is_timed_where_it_happens(clocked: LCFModule, batches: list[Batch]) -> None:
    found = measure(
        clocked.link, clocked.writer, batches, ["own_context", "t2t_4"], max_new_tokens=3, repeats=3, warmup=1
    )
    rest = medians(found, "message").pop("rest_of_answer")
    assert medians(found, "message") == pytest.approx(
        {"sharer_prefill": 30, "pool": 2, "receiver_prefill": 40, "fuse": 1, "first_token": 5, "rest_of_answer": rest}
    )
    assert 0 <= rest <= 10 + 1e-6  # two more tokens at most
    assert medians(found, "own_context") | {"rest_of_answer": 0} == pytest.approx(
        {"receiver_prefill": 40, "first_token": 5, "rest_of_answer": 0}
    )
    assert medians(found, "t2t_4") | {"rest_of_answer": 0} == pytest.approx(
        {
            "write": 230,
            "receiver_prefill": 40,
            "read_text": 7,
            "read_at_once": 40,
            "first_token": 5,
            "rest_of_answer": 0,
        }
    )


def test_sums_floor_and_ratios(clocked: LCFModule, batches: list[Batch]) -> None:
    found = measure(clocked.link, clocked.writer, batches[:1], ["t2t_4"], max_new_tokens=1, repeats=2, warmup=0)
    message, text = found["arms"]["message"], found["arms"]["t2t_4"]
    assert message["ttft"]["median"] == pytest.approx(30 + 2 + 40 + 1 + 5)
    assert message["ttft_side_by_side"]["median"] == pytest.approx(40 + 1 + 5)  # 30 + 2 run beside 40
    assert message["end_of_answer"]["median"] == pytest.approx(78)
    assert found["floor"]["median"] == pytest.approx(30 + 40 + 5)
    assert found["floor_side_by_side"]["median"] == pytest.approx(40 + 5)
    assert message["to_floor"]["median"] == pytest.approx(78 / 75)
    assert message["to_floor_side_by_side"]["median"] == pytest.approx(46 / 45)
    assert text["ttft"]["median"] == pytest.approx(30 + 200 + 40 + 5)  # at once, which is faster than 40 + 7
    assert text["end_of_answer"] == text["ttft"]
    assert text["ttft_side_by_side"]["median"] == pytest.approx(30 + 200 + 7 + 5)  # its own context is read meanwhile
    assert found["ttft_vs_t2t"]["4"]["median"] == pytest.approx(275 / 78)
    assert found["ttft_vs_t2t_side_by_side"]["4"]["median"] == pytest.approx(242 / 46)


def test_a_text_before_the_own_context_is_read_first(clocked: LCFModule, batches: list[Batch]) -> None:
    before = [replace(batch, prompts=replace(batch.prompts, text_place="before")) for batch in batches]
    found = measure(clocked.link, clocked.writer, before, ["t2t_4"], max_new_tokens=1, repeats=1, warmup=0)
    text = found["arms"]["t2t_4"]
    assert text["ttft"]["median"] == text["ttft_side_by_side"]["median"] == pytest.approx(30 + 200 + 40 + 5)
    assert set(text["stages"]) == {"write", "read_text", "first_token", "rest_of_answer"}


@pytest.mark.parametrize(
    ("module", "place", "static"), [("span", "after", False), ("prefix", "before", True)], indirect=["module"]
)
def test_what_is_timed_is_what_answers(
    module: LCFModule, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, place: str, static: bool
) -> None:
    """The timed path yields the arm's own answer."""
    batches = [replace(batch, prompts=replace(batch.prompts, text_place=place)) for batch in batches]
    said: list[int] = []
    monkeypatch.setattr(latency, "generate", lambda *args: said.extend(generate(*args)[0].tolist()))
    arms = ["message", "question_only", "own_context", "full_context", "t2t_5"]
    for arm in arms:
        said.clear()
        latency._run(module.link, module.writer, batches[0], find_arm(arm), 6, 200 if static else None)
        (answer,) = run_arms(ArmCaches(module.link, module.writer, batches[0]), [arm], 6)
        text = module.link.receiver.tokenizer.decode(said, skip_special_tokens=True)
        assert text.strip().split("\n")[0].strip() == answer.prediction
        assert said


def test_kept_prefills_are_not_used(module: LCFModule, batches: list[Batch], tmp_path: Path) -> None:
    kept = Link(module.link.sharer, module.link.receiver, module.adapter, PrefillSettings(str(tmp_path)))
    found = measure(kept, module.writer, batches, ["t2t_4"], max_new_tokens=2, repeats=1, warmup=0)
    assert found["arms"]["message"]["stages"]["sharer_prefill"]["median"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["span", "prefix"], indirect=True)
def test_spread_repeats_and_sizes(module: LCFModule, batches: list[Batch]) -> None:
    found = measure(module.link, module.writer, batches, ["t2t_4", "mismatched"], max_new_tokens=2, repeats=4, warmup=1)
    assert (found["repeats"], found["warmup"], found["device"]) == (4, 1, "cpu")
    assert set(found["arms"]) == {"message", "t2t_4"}  # mismatched costs what message costs
    for spread in (found["floor"], found["arms"]["message"]["ttft"], found["ttft_vs_t2t"]["4"]):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    channel = channel_of(module)
    (example,) = batches[0].examples
    message = channel.send([fact for (fact,) in example.sharer], example.question)
    wire = {dtype: len(message.to_bytes(dtype)) for dtype in ("float32", "bfloat16", "float16", "int8", "int4")}
    assert found["arms"]["message"]["sent_bytes"] == wire
    assert set(found["arms"]["t2t_4"]["sent_bytes"]) == {"UTF-8"}
    assert found["writing"] is not None
    assert (found["writing"]["budget"], found["writing"]["to_generate"]["min"] > 0) == (4, True)
    assert (found["arms"]["message"]["written_tokens"], found["arms"]["t2t_4"]["written_tokens"]) == (0, 4)
    assert [arm for arm in ARMS if find_arm(arm).timed] == [
        "question_only",
        "own_context",
        "full_context",
        *(f"t2t_{n}" for n in (50, 100, 150, 200)),
        "message",
    ]


@pytest.mark.parametrize("send_tokens", [None, 3])
@pytest.mark.parametrize("pooler", ["span", "prefix", "carry"])
def test_bytes_are_those_of_every_sharers_message(
    spec: Callable[[str], ModelSpec], pooler: str, send_tokens: int | None
) -> None:
    prompts = PromptSettings(question=" {question}", sharers=2, send_tokens=send_tokens)
    module = small_module(spec("llama"), spec("qwen3"), pooler=pooler)
    module.configure_model()
    data = small_data(spec("llama"), spec("qwen3"), prompts=prompts)
    data.setup("test")
    example = next(iter(data.test_dataloader())).examples[0]
    single = batches_of_one(module.link, module.writer, prompts, [example])
    found = measure(module.link, module.writer, single, [], max_new_tokens=2, repeats=1, warmup=0)
    channel = channel_of(module)
    channel.prompts = prompts
    sent = [channel.send([fact], example.question) for (fact,) in example.sharer]
    wire = {dtype: sum(len(one.to_bytes(dtype)) for one in sent) for dtype in found["arms"]["message"]["sent_bytes"]}
    assert found["arms"]["message"]["sent_bytes"] == wire
    assert len(sent) == 2


def test_a_sharer_that_has_read_nothing_sends_nothing(spec: Callable[[str], ModelSpec]) -> None:
    prompts = PromptSettings(question=" {question}", sharers=2, share_question=False)
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    example = World(sharer_facts=1, test_size=1).examples("test", 1)[0]
    single = batches_of_one(module.link, module.writer, prompts, [example])
    found = measure(module.link, module.writer, single, [], max_new_tokens=2, repeats=1, warmup=0)
    channel = channel_of(module)
    channel.prompts = prompts
    message = channel.send([fact for (fact,) in example.sharer])
    assert found["arms"]["message"]["sent_bytes"]["float32"] == len(message.to_bytes("float32"))


def test_bytes_of_aligned_tokens_and_of_values_that_a_dtype_cannot_hold(spec: Callable[[str], ModelSpec]) -> None:
    prompts = PromptSettings(question="{question}?")
    module = small_module(spec("llama"), spec("qwen3"), pooler=None, unrotate_keys=False)
    module.configure_model()
    example = Knowledge(test_size=2).examples("test", 42)[0]
    single = batches_of_one(module.link, module.writer, prompts, [example])
    found = measure(module.link, module.writer, single, [], max_new_tokens=2, repeats=1, warmup=0)
    channel = channel_of(module)
    channel.prompts = prompts
    message = channel.send((), example.question)
    sizes = found["arms"]["message"]["sent_bytes"]
    assert sizes == {dtype: len(message.to_bytes(dtype)) for dtype in sizes}
    run = TimedRun(Stopwatch(torch.device("cpu")), sent=[Summaries(KV(message.keys * 1e6, message.values), None)])
    assert "float16" not in latency._sizes(run, channel.origin)
    assert "float32" in latency._sizes(run, channel.origin)


def test_the_device_is_synchronised_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", calls.append)
    with Stopwatch(torch.device("cuda"))("pool"):
        assert len(calls) == 1
    assert len(calls) == 2
    with Stopwatch(torch.device("cpu"))("pool"):
        pass
    assert len(calls) == 2


def test_bad_settings_are_named(module: LCFModule, batches: list[Batch], spec: Callable[[str], ModelSpec]) -> None:
    data = small_data(spec("llama"), spec("qwen3"))
    data.setup("test")
    with pytest.raises(SettingError, match="batches of one example"):
        measure(module.link, module.writer, list(data.test_dataloader()), ["message"], 2, repeats=1)
    with pytest.raises(SettingError, match="repeats=0 and warmup=2 must be at least 1 and 0"):
        measure(module.link, module.writer, batches, ["message"], 2, repeats=0)
