from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lcf_lightning import Channel, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import ARMS, ArmCaches, run_arms
from lcf_lightning.evaluation.latency import Latency, Stopwatch, measure, timed
from tests.pairs import small_data, small_module

DELAYS = {"read_sharer": 0.03, "pool": 0.02, "read_receiver": 0.04, "fuse": 0.01}


@pytest.fixture
def channel(spec: Callable[[str], ModelSpec]) -> Channel:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    module.adapter.eval()
    return module.channel


@pytest.fixture
def batches(spec: Callable[[str], ModelSpec]) -> list[Batch]:
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    return list(data.test_dataloader())[:2]


@pytest.fixture
def slow(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> Channel:
    """The channel with known delays in each of its stages."""
    for name, seconds in DELAYS.items():
        monkeypatch.setattr(channel, name, delayed(getattr(channel, name), seconds))
    return channel


def delayed(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return call(*args)

    return slowly


def medians(found: Latency, arm: str) -> dict[str, float]:
    return {stage: spread["median"] for stage, spread in found["arms"][arm]["stages"].items()}


def test_each_stage_is_timed_where_it_happens(slow: Channel, batches: list[Batch]) -> None:
    found = measure(slow, batches, ["own_context", "t2t_4"], max_new_tokens=3, repeats=3, warmup=1)
    stages = medians(found, "message")
    assert list(stages) == ["sharer_prefill", "pool", "receiver_prefill", "fuse", "first_token", "rest_of_answer"]
    for stage, name in (
        ("sharer_prefill", "read_sharer"),
        ("pool", "pool"),
        ("receiver_prefill", "read_receiver"),
        ("fuse", "fuse"),
    ):
        assert 1 <= stages[stage] / (DELAYS[name] * 1e3) < 3
    assert list(medians(found, "own_context")) == ["receiver_prefill", "first_token", "rest_of_answer"]
    assert list(medians(found, "t2t_4")) == [
        "sharer_prefill",
        "write",
        "receiver_prefill",
        "first_token",
        "rest_of_answer",
    ]
    assert medians(found, "t2t_4")["write"] > medians(found, "t2t_4")["first_token"]  # four tokens against one


def test_sums_and_floor_follow_from_the_stages(slow: Channel, batches: list[Batch]) -> None:
    found = measure(slow, batches[:1], ["t2t_4"], max_new_tokens=3, repeats=1, warmup=0)
    message, stages = found["arms"]["message"], medians(found, "message")
    rest = stages.pop("rest_of_answer")
    assert message["ttft"]["median"] == pytest.approx(sum(stages.values()))
    assert message["end_of_answer"]["median"] == pytest.approx(sum(stages.values()) + rest)
    floor = stages["sharer_prefill"] + stages["receiver_prefill"] + stages["first_token"]
    assert found["floor"]["median"] == pytest.approx(floor)
    assert message["to_floor"]["median"] == pytest.approx(sum(stages.values()) / floor)
    beside = max(stages["sharer_prefill"] + stages["pool"], stages["receiver_prefill"])
    assert message["ttft_side_by_side"]["median"] == pytest.approx(beside + stages["fuse"] + stages["first_token"])
    assert message["ttft_side_by_side"]["median"] < message["ttft"]["median"]
    text = found["arms"]["t2t_4"]
    assert text["ttft"] == text["ttft_side_by_side"]  # a text must be there before it is read
    assert found["ttft_vs_t2t"]["4"]["median"] == pytest.approx(text["ttft"]["median"] / message["ttft"]["median"])


def test_what_is_timed_is_what_answers(channel: Channel, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed path yields the arm's own answer."""
    import lcf_lightning.evaluation.latency as latency

    said: list[int] = []
    plain = latency.stream

    def listened(*args: Any) -> Any:
        for token in plain(*args):
            said.append(int(token))
            yield token

    monkeypatch.setattr(latency, "stream", listened)
    arms = ["message", "question_only", "own_context", "full_context", "t2t_5"]
    for arm in arms:
        said.clear()
        latency._run(channel, batches[0], arm, 6, Stopwatch(torch.device("cpu")))
        (answer,) = run_arms(ArmCaches(channel, batches[0]), [arm], 6)
        text = channel.receiver.tokenizer.decode(said, skip_special_tokens=True)
        assert text.strip().split("\n")[0].strip() == answer.prediction
        assert said


def test_spread_repeats_and_sizes(channel: Channel, batches: list[Batch]) -> None:
    found = measure(channel, batches, ["t2t_4", "mismatched"], max_new_tokens=2, repeats=4, warmup=1)
    assert (found["repeats"], found["warmup"], found["device"]) == (4, 1, "cpu")
    assert set(found["arms"]) == {"message", "t2t_4"}  # mismatched costs what message costs
    for spread in (found["floor"], found["arms"]["message"]["ttft"], found["ttft_vs_t2t"]["4"]):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    geometry, layers = channel.sharer.geometry, len(channel.adapter.config.receiver_layers)
    assert found["arms"]["message"]["sent_bytes"] == 2 * layers * geometry.kv_heads * geometry.head_dim * 4
    assert timed(ARMS) == [
        "question_only",
        "own_context",
        "full_context",
        *(f"t2t_{n}" for n in (50, 100, 150, 200)),
        "message",
    ]


def test_the_device_is_synchronised_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", calls.append)
    with Stopwatch(torch.device("cuda"))("pool"):
        assert len(calls) == 1
    assert len(calls) == 2
    with Stopwatch(torch.device("cpu"))("pool"):
        pass
    assert len(calls) == 2


def test_bad_settings_are_named(channel: Channel, batches: list[Batch], spec: Callable[[str], ModelSpec]) -> None:
    data = small_data(spec("llama"), spec("qwen3"))
    data.setup("test")
    with pytest.raises(SettingError, match="batches of one example"):
        measure(channel, list(data.test_dataloader()), ["message"], 2, repeats=1)
    with pytest.raises(SettingError, match="repeats=0 and warmup=2 must be at least 1 and 0"):
        measure(channel, batches, ["message"], 2, repeats=0)
