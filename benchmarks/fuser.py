"""What the fuse step costs: against C2C's, and in batched products against one layer after the other.

    python benchmarks/fuser.py

Same input, same process, alternating. LCF-128 and LCF-X-128, its pool included, against C2C's arithmetic at the paper's
size: ratios paired by repeat, beside that of the operations that torch counts in products, and what LCF's time goes to.
Then the fuser in batched products against one layer after the other: the same weights, whose output must agree.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lcf_lightning.adapter.fusers.c2c import C2CFuser
from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.adapter.parts import PartShape
from lcf_lightning.adapter.poolers.span import SpanPooler
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, KV, Geometry

PAIRS = {
    "SmolLM2-135M → SmolLM2-135M": ("HuggingFaceTB/SmolLM2-135M-Instruct",) * 2,
    "Qwen3-0.6B → Qwen3-0.6B": ("Qwen/Qwen3-0.6B",) * 2,
}

QWEN25, QWEN3 = (KNOWN_GEOMETRIES[name] for name in ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B"))
SPANS = 5
"""Paragraphs that LCF-X's pooler summarises."""
PRODUCTS = ("bmm", "baddbmm", "addmm", "mm")


def random_kv(layers: int, geometry: Geometry, tokens: int) -> KV:
    shape = (layers, 1, geometry.kv_heads, tokens, geometry.head_dim)
    return KV(torch.randn(shape), torch.randn(shape))


def one_layer_each(fuser: LCFFuser, layers: int) -> list[LCFFuser]:
    """The same weights as so many fusers of one layer."""
    singles = []
    for layer in range(layers):
        single = copy.deepcopy(fuser)
        for parameter in single.parameters():
            parameter.data = parameter.data[layer : layer + 1].clone()
        singles.append(single)
    return singles


def milliseconds(call: Callable[[], object]) -> float:
    """Of CPU time, so that other processes do not count."""
    started = time.process_time()
    call()
    return (time.process_time() - started) * 1e3


def fuse_steps(tokens: int, d: int, hidden: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name the fuse step of LCF, and C2C's for the same pair and tokens: one question, caches as they are read."""
    steps: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name, sharer in ((f"LCF-{d}", QWEN25), (f"LCF-X-{d} with its pool", QWEN3)):
        layers = QWEN3.layers
        ours = LCFFuser(PartShape(layers, sharer, QWEN3, d)).eval()
        theirs = C2CFuser(PartShape(layers, sharer, QWEN3, hidden)).eval()
        pooler = SpanPooler(PartShape(layers, sharer, QWEN3, d))
        message, cache = random_kv(layers, sharer, tokens), random_kv(layers, QWEN3, tokens)
        spans = (torch.arange(tokens) * SPANS // tokens)[None]

        def pooled(pooler: SpanPooler = pooler, message: KV = message, spans: Tensor = spans) -> KV:
            return pooler.merge(pooler.summarise(message, spans)).kv

        def as_it_is(message: KV = message) -> KV:
            return message

        sent = as_it_is if sharer is QWEN25 else pooled
        steps[name] = (
            lambda ours=ours, sent=sent, cache=cache: ours(sent(), cache),
            lambda theirs=theirs, message=message, cache=cache: theirs(message, cache),
        )  # type: ignore[misc]
    return steps


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def spent_on(call: Callable[[], object], repeats: int) -> str:
    """The share of a call's CPU time that each kind of operation takes, the greatest first."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            call()
    times: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::").rstrip("_")
        times["products" if name in PRODUCTS else name] += event.self_cpu_time_total
    total = sum(times.values())
    greatest = sorted(times.items(), key=lambda each: -each[1])[:7]
    return " · ".join(f"{name} {time / total:.0%}" for name, time in greatest)


@torch.no_grad()
def against_c2c(tokens: int, d: int, hidden: int, repeats: int) -> None:
    for name, (ours, theirs) in fuse_steps(tokens, d, hidden).items():
        counted = operations(ours) / operations(theirs)
        pairs = [(milliseconds(ours), milliseconds(theirs)) for _ in range(repeats + 1)][1:]
        ratios = [one / other for one, other in pairs]
        one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name}, {tokens} tokens: {one:.1f} ms · C2C: {other:.1f} ms · {torch.get_num_threads()} threads")
        print(f"  ratio {statistics.median(ratios):.4f} ({min(ratios):.4f}–{max(ratios):.4f}), products {counted:.4f}")
        print(f"  of its time: {spent_on(ours, repeats)}", flush=True)


@torch.no_grad()
def compare(name: str, sharer: Geometry, receiver: Geometry, tokens: int, d: int, repeats: int) -> None:
    layers = receiver.layers
    fuser = LCFFuser(PartShape(layers, sharer, receiver, d)).eval()
    singles = one_layer_each(fuser, layers)
    message, cache = random_kv(layers, sharer, 1), random_kv(layers, receiver, tokens)
    spread = KV(*(tensor.expand(-1, -1, -1, tokens, -1) for tensor in message))

    def layer_by_layer(source: KV) -> Tensor:
        parts = [
            single(KV(*(t[i : i + 1] for t in source)), KV(*(t[i : i + 1] for t in cache))).keys
            for i, single in enumerate(singles)
        ]
        return torch.cat(parts)

    ways: dict[str, Callable[[], Tensor]] = {
        "batched": lambda: fuser(message, cache).keys,
        "layer by layer": lambda: layer_by_layer(message),
        "layer by layer, message repeated per token": lambda: layer_by_layer(spread),
    }
    for way in ways.values():  # warm-up, and the same answer
        torch.testing.assert_close(way(), fuser(message, cache).keys, atol=1e-4, rtol=1e-4)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, call in ways.items():
            times[way].append(milliseconds(call))
    base = statistics.median(times["batched"])
    for way, values in times.items():
        median = statistics.median(values)
        print(f"{name}, d={d}, {tokens} tokens: {way:45s} {median:8.1f} ms  × {median / base:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=1024, help="C2C's width")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    against_c2c(args.tokens, args.d, args.hidden, args.repeats)
    for name, (sharer, receiver) in PAIRS.items():
        compare(name, KNOWN_GEOMETRIES[sharer], KNOWN_GEOMETRIES[receiver], args.tokens, args.d, args.repeats)


if __name__ == "__main__":
    main()
