"""What kept prefills save: training steps on HotpotQA without a store, while it fills, and with a warm one.

    python benchmarks/kept_prefills.py MODEL

The model is on both sides, as in configs/smollm2_hotpotqa_cpu.yaml. Three adapters begin alike and train on the same
batches in one process, in turn, so that all meet the same machine; one of them finds every prefill on disk. Prints
JSON: median, least and greatest seconds of a step, the ratio of a step without a store to each, paired by batch, the
greatest difference of their losses, and bytes an example.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from statistics import median

import torch

from lcf_lightning import AdapterConfig, AdapterSettings, CacheAdapter, ModelSpec
from lcf_lightning.adapter.config import ModelIdentity
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import HotpotQA
from lcf_lightning.evaluation.caches import Reading
from lcf_lightning.evaluation.prediction import answer_losses
from lcf_lightning.link import Link, load_pair
from lcf_lightning.models.loading import geometry_of
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from lcf_lightning.writer import Writer


def step(link: Link, optimizer: torch.optim.Optimizer, batch: Batch, seed: int) -> tuple[float, float, float]:
    """Seconds of a whole training step and of its two prefills, and the loss."""
    torch.manual_seed(seed)  # of the gates' noise
    started = time.perf_counter()
    sharer, receiver = link.read_sharer(batch.sharer), link.read_receiver(batch.receiver)
    read = time.perf_counter()
    cache = link.fuse(receiver, link.pool(sharer, batch.index), temperature=1.0)
    loss = answer_losses(link, Reading(cache, batch.last), batch).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(link.adapter.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started, read - started, loss.item()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", help="a folder with hotpotqa_train.jsonl.gz and …_dev… (default: the hub's)")
    parser.add_argument("--dtype", default=None, help="of the store; the model's own by default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--d", type=int, default=64)
    args = parser.parse_args()
    spec = ModelSpec(args.model)
    pair = load_pair(spec, spec)
    files = [f"{args.data}/hotpotqa_{split}.jsonl.gz" for split in ("train", "dev")] if args.data else []
    source = HotpotQA(*files, distractors=0, validation_size=64)
    identity = ModelIdentity(spec.path, spec.revision, geometry_of(spec))
    config = AdapterConfig(identity, identity, AdapterSettings(d=args.d))
    with tempfile.TemporaryDirectory() as folder:
        settings = PrefillSettings(folder, args.dtype)
        links = {}
        for name in ("none", "cold", "warm"):
            torch.manual_seed(0)
            links[name] = Link(*pair, CacheAdapter(config), None if name == "none" else settings)
        collator = Writer.of(links["none"]).collator(PromptSettings(max_sharer_tokens=320, max_receiver_tokens=320))
        examples = list(source.examples("train", 42))[: (args.steps + 1) * args.batch]
        batches = [collator.train(examples[at : at + args.batch]) for at in range(0, len(examples), args.batch)]
        optimizers = {name: torch.optim.AdamW(each.adapter.parameters(), lr=1e-3) for name, each in links.items()}
        seconds: dict[str, list[float]] = {name: [] for name in links}
        reading: dict[str, list[float]] = {name: [] for name in links}
        losses: dict[str, list[float]] = {name: [] for name in links}
        for at, batch in enumerate(batches):
            for name in ("none", "cold", "warm"):  # what the cold one has written the warm one finds
                taken, read, loss = step(links[name], optimizers[name], batch, at)
                losses[name].append(loss)
                if at > 0:  # the first is thrown away
                    seconds[name].append(taken)
                    reading[name].append(read)
        size = PrefillStore(settings, pair[0]).size
    ratios = {
        name: [none / own for none, own in zip(seconds["none"], taken, strict=True)] for name, taken in seconds.items()
    }
    lengths = [int(side.mask.sum()) for batch in batches for side in (batch.sharer, batch.receiver)]
    report = {
        **vars(args),
        "threads": torch.get_num_threads(),
        "tokens_per_example": sum(lengths) / len(examples),
        "bytes_per_example": size / len(examples),
        "greatest_loss_difference": max(abs(a - b) for a, b in zip(losses["none"], losses["warm"], strict=True)),
        "stores": {
            name: {
                "seconds": spread(seconds[name]),
                "prefill_seconds": spread(reading[name]),
                "speedup": spread(ratios[name]),
            }
            for name in links
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
