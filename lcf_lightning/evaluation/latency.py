"""How long each arm takes, stage by stage: batch 1, warmed up, medians with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import TypedDict

import torch

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.evaluation.arms import Arm, TimedRun, find_arm
from lcf_lightning.evaluation.writing import Spread, Writing, measure_writing, ratio, spread, static_size
from lcf_lightning.link import Link
from lcf_lightning.message import Message
from lcf_lightning.models.decoding import generate
from lcf_lightning.origin import Origin
from lcf_lightning.sending import origin_of
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.wire import WIRE_DTYPES
from lcf_lightning.writer import Writer

STAGES = (
    "sharer_prefill", "pool", "write", "receiver_prefill", "read_text", "read_at_once", "fuse", "question",
    "first_token", "rest_of_answer",
)  # fmt: skip
FLOOR = ("sharer_prefill", "receiver_prefill", "question", "first_token")
SHARER_STAGES = ("sharer_prefill", "pool", "write")  # what can run beside the receiver's prefill


class ArmLatency(TypedDict):
    """One arm's times in milliseconds, every prefill that it needs included.

    Attributes:
        stages: Each stage alone. A text that stands after the receiver's own context is read in two parts
            (``receiver_prefill``, ``read_text``), as side by side, and once more as one (``read_at_once``). ``write``
            holds the prefill of the sharer that writes.
        ttft: Time to the first token, all stages one after the other.
        ttft_side_by_side: The same where the receiver reads its own context while the sharer reads, and pools or
            writes; it reads a text when that is written.
        end_of_answer: Time to the end of the answer, one after the other.
        to_floor: ``ttft`` over the floor: both prefills and one decoding step of the message arm in the same repeat.
        to_floor_side_by_side: The same side by side.
        sent_bytes: Bytes of what the sharer sends (medians): of a message as `Message.to_bytes` gives it, header
            included, by dtype; of a text in UTF-8. Nothing where nothing is sent.
        written_tokens: Tokens the sharer wrote (median), its end of sequence too; 0 but for T2T. It may stop early.
    """

    stages: dict[str, Spread]
    ttft: Spread
    ttft_side_by_side: Spread
    end_of_answer: Spread
    to_floor: Spread
    to_floor_side_by_side: Spread
    sent_bytes: dict[str, int]
    written_tokens: int


class Latency(TypedDict):
    """Times of every arm measured.

    Attributes:
        arms: By arm.
        floor: Both prefills and one decoding step, one after the other, in milliseconds.
        floor_side_by_side: The slower prefill and one decoding step.
        ttft_vs_t2t: Per budget N, the time to first token of ``t2t_N`` over that of the message, paired by repeat.
        ttft_vs_t2t_side_by_side: The same, both side by side.
        writing: How fast the sharer writes; null where no text was timed, or its cache was given.
        repeats: Measurements of each arm.
        warmup: Measurements thrown away before.
        device: What it ran on.
        threads: torch's threads.
    """

    arms: dict[str, ArmLatency]
    floor: Spread
    floor_side_by_side: Spread
    ttft_vs_t2t: dict[str, Spread]
    ttft_vs_t2t_side_by_side: dict[str, Spread]
    writing: Writing | None
    repeats: int
    warmup: int
    device: str
    threads: int


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
    static_cache: bool | None = None,
) -> Latency:
    """Time every arm ``repeats`` times, in turn, each time on the next of the batches.

    Args:
        link: The pair and the adapter.
        writer: Its prompts.
        batches: Batches of one example; see `batches_of_one`.
        arms: What to time besides the message, which is always timed; those not worth it are left out.
        max_new_tokens: Longest answer, in receiver tokens.
        repeats: At least 1.
        warmup: Repeats thrown away first.
        static_cache: Whether texts are written on a cache of fixed size (`write_texts`); null to find out which is
            faster here, and to say how fast that is.

    Raises:
        SettingError: If a batch holds more than one example or a number is out of range.
    """
    if repeats < 1 or warmup < 0:
        raise SettingError(f"repeats={repeats} and warmup={warmup} must be at least 1 and 0.")
    if not batches or any(len(batch) != 1 for batch in batches):
        raise SettingError("latency is measured on batches of one example.")
    link = link.without_prefills()  # kept ones would hide what is timed
    timed = [arm for arm in map(find_arm, dict.fromkeys(["message", *arms])) if arm.timed]
    budgets = [arm.budget for arm in timed if arm.budget]
    size = static_size(link, writer, batches, max(budgets)) if budgets else None
    writing = None
    if size is not None and static_cache is None:
        writing = measure_writing(link, writer, batches, max(budgets), size, min(repeats, 3))
        static_cache = writing["cache"] == "static"
    runs: dict[str, list[TimedRun]] = {arm.name: [] for arm in timed}
    for repeat in range(-warmup, repeats):
        for arm in timed:
            run = _run(
                link, writer, batches[repeat % len(batches)], arm, max_new_tokens, size if static_cache else None
            )
            if repeat >= 0:
                runs[arm.name].append(run)
    return _latency(runs, origin_of(link.adapter), writing, repeats, warmup, link.receiver.device)


def _run(
    link: Link, writer: Writer, batch: Batch, arm: Arm, max_new_tokens: int, static_size: int | None = None
) -> TimedRun:
    """One answer under one arm, from tokens to the last token."""
    run = TimedRun(Stopwatch(link.receiver.device), static_size)
    cache, last = arm.run(link, writer, batch, run)
    generate(link.receiver, cache, last, max_new_tokens, run.watch)
    return run


def _latency(
    runs: dict[str, list[TimedRun]],
    origin: Origin,
    writing: Writing | None,
    repeats: int,
    warmup: int,
    device: torch.device,
) -> Latency:
    stages = {arm: [run.watch.milliseconds for run in arm_runs] for arm, arm_runs in runs.items()}
    floors = [sum(run.get(stage, 0) for stage in FLOOR) for run in stages["message"]]
    beside = [
        max(run[FLOOR[0]], run[FLOOR[1]]) + sum(run.get(stage, 0) for stage in FLOOR[2:]) for run in stages["message"]
    ]
    ttft = {arm: [_ttft(run) for run in times] for arm, times in stages.items()}
    side_by_side = {arm: [_side_by_side(run) for run in times] for arm, times in stages.items()}
    figures = {
        arm: ArmLatency(
            stages={stage: spread([run[stage] for run in times]) for stage in STAGES if stage in times[0]},
            ttft=spread(ttft[arm]),
            ttft_side_by_side=spread(side_by_side[arm]),
            end_of_answer=spread([_ttft(run) + run["rest_of_answer"] for run in times]),
            to_floor=ratio(ttft[arm], floors),
            to_floor_side_by_side=ratio(side_by_side[arm], beside),
            sent_bytes=_sent_bytes(runs[arm], origin),
            written_tokens=int(median(run.written_tokens for run in runs[arm])),
        )
        for arm, times in stages.items()
    }
    texts = {arm: str(find_arm(arm).budget) for arm in runs if arm == f"t2t_{find_arm(arm).budget}"}
    return Latency(
        arms=figures,
        floor=spread(floors),
        floor_side_by_side=spread(beside),
        ttft_vs_t2t={budget: ratio(ttft[arm], ttft["message"]) for arm, budget in texts.items()},
        ttft_vs_t2t_side_by_side={
            budget: ratio(side_by_side[arm], side_by_side["message"]) for arm, budget in texts.items()
        },
        writing=writing,
        repeats=repeats,
        warmup=warmup,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
    )


def _sent_bytes(runs: Sequence[TimedRun], origin: Origin) -> dict[str, int]:
    """Bytes on the wire, by dtype; medians."""
    sizes = [_sizes(run, origin) for run in runs]
    return {name: int(median(size[name] for size in sizes)) for name in sizes[0] if all(name in size for size in sizes)}


def _sizes(run: TimedRun, origin: Origin) -> dict[str, int]:
    """Of what one run has sent; without the dtypes that cannot hold it."""
    if isinstance(run.sent, str):
        return {"UTF-8": len(run.sent.encode())}
    messages = [Message(*sent.kv, origin, prompt=run.prompt) for sent in run.sent]
    sizes = {}
    for dtype in WIRE_DTYPES if messages else ():
        with suppress(MessageError):
            sizes[dtype] = sum(len(message.to_bytes(dtype)) for message in messages)
    return sizes


def _ttft(run: dict[str, float]) -> float:
    """Time to first token, all stages one after the other; a text is read at once then, if that is faster."""
    apart = sum(time for stage, time in run.items() if stage not in ("rest_of_answer", "read_at_once"))
    if "read_at_once" in run:
        apart -= max(0.0, run["receiver_prefill"] + run["read_text"] - run["read_at_once"])
    return apart


def _side_by_side(run: dict[str, float]) -> float:
    """Time to first token where the two models work at once, as far as one need not wait for the other."""
    sharer = sum(run.get(stage, 0) for stage in SHARER_STAGES)
    after = sum(run.get(stage, 0) for stage in ("read_text", "fuse", "question", "first_token"))
    return min(max(sharer, run.get("receiver_prefill", 0)) + after, _ttft(run))
