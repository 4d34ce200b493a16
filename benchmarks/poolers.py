"""What the two ways to write a message cost side by side: trainable parameters, `pool` and `fuse` milliseconds.

    python benchmarks/poolers.py tiny-sharer tiny-receiver
    python benchmarks/poolers.py $SMOLLM2 $SMOLLM2 --tokens 150

SHARER and RECEIVER are hub ids, folders, .gguf files or embedded models. Both read so many tokens, the sharer in spans
of ``--span``. The adapters are not trained, with open gates. Batch 1, one process, the two in turn, warmed up; medians
(least–greatest), and the ratio of prefix to span, paired by repeat.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from lcf_lightning import AdapterSettings, Channel, LCFModule, ModelSpec
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.link import load_pair


def channels(sharer: ModelSpec, receiver: ModelSpec, d: int) -> dict[str, Channel]:
    """A channel for each pooler, over the same loaded models."""
    loaded = load_pair(sharer, receiver)
    return {
        pooler: Channel(*loaded, LCFModule(sharer, receiver, AdapterSettings(pooler=pooler, d=d)).adapter.eval())
        for pooler in ("span", "prefix")
    }


def read(tokens: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 140, (1, tokens), generator=generator)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.full_like(ids, -1))


@torch.no_grad()
def milliseconds(channel: Channel, tokens: int, span: int, seed: int) -> tuple[float, float]:
    """Of pooling the sharer's cache to summaries, and of putting them into the receiver's."""
    sharer = channel.link.read_sharer(read(tokens, seed))
    receiver = channel.link.read_receiver(read(tokens, seed + 1))
    spans = torch.arange(tokens)[None] // span
    started = time.perf_counter()
    sent = channel.link.summarise(sharer, spans)
    pooled = time.perf_counter()
    channel.link.fuse(receiver, channel.adapter.merge(sent))
    return (pooled - started) * 1e3, (time.perf_counter() - pooled) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--span", type=int, default=4, help="tokens")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    found = channels(ModelSpec(args.sharer), ModelSpec(args.receiver), args.d)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for repeat in range(-3, args.repeats):
        for name, channel in found.items():
            taken = milliseconds(channel, args.tokens, args.span, seed=repeat + 3)
            if repeat >= 0:
                times[name].append(taken)
    print(f"{args.tokens} tokens in spans of {args.span}, d={args.d}, {torch.get_num_threads()} threads\n")
    print("| pooler | trainable parameters | pool, ms | fuse, ms |")
    print("| --- | ---: | ---: | ---: |")
    for name, channel in found.items():
        cells = [f"{median(side):.1f} ({min(side):.1f}–{max(side):.1f})" for side in zip(*times[name], strict=True)]
        print(f"| {name} | {channel.adapter.parameter_counts()['total']:,} | {' | '.join(cells)} |")
    totals = [channel.adapter.parameter_counts()["total"] for channel in found.values()]
    ratios = [median(two[i] / one[i] for one, two in zip(*times.values(), strict=True)) for i in (0, 1)]
    print(f"| prefix / span | {totals[1] / totals[0]:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
