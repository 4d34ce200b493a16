"""What batching the layers buys: the fuser in batched products against one layer after the other.

    python benchmarks/fuser.py

Same weights, same input, same process, alternating; the output must agree. Prints median milliseconds and their ratio.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.adapter.parts import PartShape
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, KV, Geometry

PAIRS = {
    "SmolLM2-135M → SmolLM2-135M": ("HuggingFaceTB/SmolLM2-135M-Instruct",) * 2,
    "Qwen3-0.6B → Qwen3-0.6B": ("Qwen/Qwen3-0.6B",) * 2,
}


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


def milliseconds(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


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
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    for name, (sharer, receiver) in PAIRS.items():
        compare(name, KNOWN_GEOMETRIES[sharer], KNOWN_GEOMETRIES[receiver], args.tokens, args.d, args.repeats)


if __name__ == "__main__":
    main()
