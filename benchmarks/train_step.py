"""What a training step costs with each fuser: LCF-64, LCF-128 and C2C on the same pair, batch and process.

    python benchmarks/train_step.py SHARER RECEIVER

Prefills of both models, fuse, answer, backward, AdamW; alternating, so that all fusers meet the same machine. Prints
JSON: median, least and greatest seconds of each, and the ratio to the first, paired by repeat.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch
from torch import Tensor

from lcf_lightning import AdapterConfig, AdapterSettings, CacheAdapter, ModelSpec
from lcf_lightning.adapter.config import ModelIdentity
from lcf_lightning.link import Link, load_pair
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.loading import geometry_of

FUSERS = {
    "LCF-64": ("lcf", 64, False), "LCF-128": ("lcf", 128, False), "LCF-128, blocks twice": ("lcf", 128, True),
    "C2C": ("c2c", 1024, False), "C2C, blocks twice": ("c2c", 1024, True),
}  # fmt: skip
"""Kind and width, and whether its blocks are computed twice (``model.activation_checkpointing``)."""


def links(sharer: ModelSpec, receiver: ModelSpec) -> dict[str, Link]:
    pair = load_pair(sharer, receiver)
    identities = [ModelIdentity(spec.path, spec.revision, geometry_of(spec)) for spec in (sharer, receiver)]
    made = {}
    for name, (fuser, d, twice) in FUSERS.items():
        settings = AdapterSettings(fuser=fuser, d=d, pooler=None, unrotate_keys=False)
        adapter = CacheAdapter(AdapterConfig(*identities, settings))
        if twice:
            adapter.recompute_blocks()
        made[name] = Link(*pair, adapter)
    return made


def step(link: Link, optimizer: torch.optim.Optimizer, ids: Tensor, answers: Tensor) -> float:
    mask = torch.ones_like(ids, dtype=torch.bool)
    index = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
    started = time.perf_counter()
    sharer = prefill(link.sharer.model, ids, mask)
    receiver = prefill(link.receiver.model, ids[:, :-1], mask[:, :-1])
    cache = link.fuse(receiver, link.pool(sharer, index), temperature=1.0)
    said = link.continuation(cache, ids[:, -1:], answers, torch.ones_like(answers, dtype=torch.bool))
    said.likelihood(answers).losses.mean().backward()
    torch.nn.utils.clip_grad_norm_(link.adapter.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=40, help="tokens")
    parser.add_argument("--answer", type=int, default=16, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(100, 40_000, (args.batch, args.prompt))
    answers = torch.randint(100, 40_000, (args.batch, args.answer))
    found = links(ModelSpec(args.sharer), ModelSpec(args.receiver))
    optimizers = {name: torch.optim.AdamW(link.adapter.parameters()) for name, link in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(-1, args.repeats):
        for name, link in found.items():
            taken = step(link, optimizers[name], ids, answers)
            if repeat >= 0:  # the first is thrown away
                seconds[name].append(taken)
    first = seconds[next(iter(found))]
    report = {
        name: {
            "parameters": found[name].adapter.parameter_counts()["total"],
            "seconds": {"median": median(taken), "min": min(taken), "max": max(taken)},
            "ratio": median(one / other for one, other in zip(taken, first, strict=True)),
        }
        for name, taken in seconds.items()
    }
    print(json.dumps({**vars(args), "threads": torch.get_num_threads(), "fusers": report}, indent=2))


if __name__ == "__main__":
    main()
