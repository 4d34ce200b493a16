"""How long each arm takes, stage by stage (method.md §7): batch 1, warmed up, medians with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

import torch
from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import TEXT_ARMS, passages_prompts, text_budget
from lcf_lightning.evaluation.text_baseline import reading_prompts, text_prompts, write_texts
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.decoding import generate
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.writer import Writer

STAGES = ("sharer_prefill", "pool", "write", "receiver_prefill", "fuse", "first_token", "rest_of_answer")
FLOOR = ("sharer_prefill", "receiver_prefill", "first_token")
SHARER_STAGES = ("sharer_prefill", "pool")  # what can run beside the receiver's prefill


class Spread(TypedDict):
    """Median, least and greatest of the repeats."""

    median: float
    min: float
    max: float


class ArmLatency(TypedDict):
    """One arm's times in milliseconds, every prefill that it needs included.

    Attributes:
        stages: Each stage alone.
        ttft: Time to the first token, all stages one after the other.
        ttft_side_by_side: The same where the sharer's prefill and pooling run beside the receiver's prefill. A text
            must be written before the receiver can read on, so T2T gains nothing.
        end_of_answer: Time to the end of the answer, one after the other.
        to_floor: ``ttft`` over the floor: both prefills and one decoding step of the message arm in the same repeat.
        to_floor_side_by_side: The same side by side.
        sent_bytes: Size of what the sharer sends: message tensors, or text in UTF-8 (median); 0 where nothing is sent.
        written_tokens: Tokens the sharer wrote (median), its end of sequence too; 0 but for T2T. It may stop early.
    """

    stages: dict[str, Spread]
    ttft: Spread
    ttft_side_by_side: Spread
    end_of_answer: Spread
    to_floor: Spread
    to_floor_side_by_side: Spread
    sent_bytes: int
    written_tokens: int


class Latency(TypedDict):
    """Times of every arm measured.

    Attributes:
        arms: By arm.
        floor: Both prefills and one decoding step, one after the other, in milliseconds.
        floor_side_by_side: The slower prefill and one decoding step.
        ttft_vs_t2t: Per budget N, the time to first token of ``t2t_N`` over that of the message, paired by repeat.
        repeats: Measurements of each arm.
        warmup: Measurements thrown away before.
        device: What it ran on.
        threads: torch's threads.
    """

    arms: dict[str, ArmLatency]
    floor: Spread
    floor_side_by_side: Spread
    ttft_vs_t2t: dict[str, Spread]
    repeats: int
    warmup: int
    device: str
    threads: int


@dataclass
class Run:
    """One answer under one arm: its stages, the bytes that were sent and the tokens that were written for it."""

    watch: Stopwatch
    sent_bytes: int = 0
    written_tokens: int = 0


def timed(arms: Sequence[str]) -> list[str]:
    """The arms worth timing: those that differ from the message only in what is sent cost what it costs."""
    return [arm for arm in arms if arm in ("own_context", "message", *TEXT_ARMS) or text_budget(arm)]


def batches_of_one(link: Link, writer: Writer, prompts: PromptSettings, examples: Sequence[Example]) -> list[Batch]:
    """Each example as a batch of its own, on the receiver's device."""
    collator = writer.collator(prompts)
    return [collator.collate([example], [prompts.sharers]).to(link.receiver.device) for example in examples]


@torch.no_grad()
def measure(
    link: Link,
    writer: Writer,
    batches: Sequence[Batch],
    arms: Sequence[str],
    max_new_tokens: int,
    repeats: int,
    warmup: int = 2,
) -> Latency:
    """Time every arm ``repeats`` times, in turn, each time on the next of the batches.

    Args:
        link: The pair and the adapter.
        writer: Its prompts.
        batches: Batches of one example; see `batches_of_one`.
        arms: What to time besides the message, which is always timed; see `timed`.
        max_new_tokens: Longest answer, in receiver tokens.
        repeats: At least 1.
        warmup: Repeats thrown away first.

    Raises:
        SettingError: If a batch holds more than one example or a number is out of range.
    """
    if repeats < 1 or warmup < 0:
        raise SettingError(f"repeats={repeats} and warmup={warmup} must be at least 1 and 0.")
    if not batches or any(len(batch) != 1 for batch in batches):
        raise SettingError("latency is measured on batches of one example.")
    link = link.without_prefills()  # kept ones would hide what is timed
    arms = list(dict.fromkeys(["message", *timed(arms)]))
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for repeat in range(-warmup, repeats):
        for arm in arms:
            run = _run(link, writer, batches[repeat % len(batches)], arm, max_new_tokens)
            if repeat >= 0:
                runs[arm].append(run)
    return _latency(runs, repeats, warmup, link.receiver.device)


def _run(link: Link, writer: Writer, batch: Batch, arm: str, max_new_tokens: int) -> Run:
    """One answer under one arm, from tokens to the last token."""
    run = Run(Stopwatch(link.receiver.device))
    watch = run.watch
    if arm == "message":
        cache, last = _message(link, batch, run)
    elif text_budget(arm):
        cache, last = _text(link, writer, batch, text_budget(arm), run)
    else:
        own = (batch.receiver, batch.last)
        read, last = passages_prompts(link, writer, batch, TEXT_ARMS[arm]) if arm in TEXT_ARMS else own
        with watch("receiver_prefill"):
            cache = link.read_receiver(read)
    generate(link.receiver, cache, last, max_new_tokens, watch)
    return run


def _message(link: Link, batch: Batch, run: Run) -> tuple[KVCache, Tensor]:
    watch = run.watch
    with watch("sharer_prefill"):
        sharer = link.read_sharer(batch.sharer)
    with watch("pool"):
        message = link.pool(sharer, batch.index)
    run.sent_bytes = sum(tensor.numel() * tensor.element_size() for tensor in message.kv)
    with watch("receiver_prefill"):
        own = link.read_receiver(batch.receiver)
    with watch("fuse"):
        cache = link.fuse(own, message)
    return cache, batch.last


def _text(link: Link, writer: Writer, batch: Batch, budget: int, run: Run) -> tuple[KVCache, Tensor]:
    watch = run.watch
    read, last = text_prompts(link, writer, batch.prompts, batch.examples)
    with watch("sharer_prefill"):
        sharer = link.read_sharer(read)
    with watch("write"):
        ids = write_texts(link, sharer, last, budget)
        texts = writer.texts(ids[:, :budget], "sharer")
        read, last = reading_prompts(link, writer, batch.prompts, batch.examples, texts)
    run.sent_bytes, run.written_tokens = len(texts[0].encode()), ids.shape[1]
    with watch("receiver_prefill"):
        cache = link.read_receiver(read)
    return cache, last


def _latency(runs: dict[str, list[Run]], repeats: int, warmup: int, device: torch.device) -> Latency:
    stages = {arm: [run.watch.milliseconds for run in arm_runs] for arm, arm_runs in runs.items()}
    floors = [sum(run[stage] for stage in FLOOR) for run in stages["message"]]
    beside = [max(run[FLOOR[0]], run[FLOOR[1]]) + run[FLOOR[2]] for run in stages["message"]]
    ttft = {arm: [_ttft(run) for run in times] for arm, times in stages.items()}
    figures = {
        arm: ArmLatency(
            stages={stage: _spread([run[stage] for run in times]) for stage in STAGES if stage in times[0]},
            ttft=_spread(ttft[arm]),
            ttft_side_by_side=_spread([_side_by_side(run) for run in times]),
            end_of_answer=_spread([sum(run.values()) for run in times]),
            to_floor=_ratio(ttft[arm], floors),
            to_floor_side_by_side=_ratio([_side_by_side(run) for run in times], beside),
            sent_bytes=int(median(run.sent_bytes for run in runs[arm])),
            written_tokens=int(median(run.written_tokens for run in runs[arm])),
        )
        for arm, times in stages.items()
    }
    budgets = [arm for arm in runs if text_budget(arm)]
    return Latency(
        arms=figures,
        floor=_spread(floors),
        floor_side_by_side=_spread(beside),
        ttft_vs_t2t={str(text_budget(arm)): _ratio(ttft[arm], ttft["message"]) for arm in budgets},
        repeats=repeats,
        warmup=warmup,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
    )


def _ttft(run: dict[str, float]) -> float:
    return sum(time for stage, time in run.items() if stage != "rest_of_answer")


def _side_by_side(run: dict[str, float]) -> float:
    """Time to first token where the two prefills overlap; only a message lets them."""
    if "pool" not in run:
        return _ttft(run)
    sharer = sum(run[stage] for stage in SHARER_STAGES)
    return max(sharer, run["receiver_prefill"]) + run["fuse"] + run["first_token"]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), min=min(values), max=max(values))


def _ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    return _spread([one / other for one, other in zip(above, below, strict=True)])
