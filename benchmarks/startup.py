"""How long a fit takes to its first step, and how much memory, where it finds 500,000 chats.

    python benchmarks/startup.py SHARER RECEIVER

The two are models whose tokenizers are used; the models themselves are replaced by tiny random ones. Chats go into a
temporary folder: words drawn at random, lengths log-normal, a fifth of several turns, a few rows malformed. Then
`configs/qwen_openhermes_lcf128.yaml`, the paper's run of 300 steps of 260, is started twice with an empty cache of
`datasets`, and ended as its first step begins. Prints JSON: for each start seconds from the command to the first step,
and of each rank, and of the processes that tokenise for it, CPU seconds and the greatest resident memory; files that
are mapped, which ranks share, count in it, but not in ``own_gb``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lcf_lightning import ModelSpec
from lcf_lightning.data.sources.world import VOCABULARY
from lcf_lightning.models.spec import load_tokenizer

CONFIG = Path(__file__).parents[1] / "configs" / "qwen_openhermes_lcf128.yaml"
WORDS = {"human": 60, "gpt": 120}
"""The median words of a turn."""
SAID = random.Random(0).choices(VOCABULARY, k=200_000)
"""What turns are pieces of."""


class FirstStep(pl.Callback):
    """Ends the process as its first step begins, and leaves what it has taken in ``folder/rank_N.json``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        used = {who: resource.getrusage(getattr(resource, f"RUSAGE_{who.upper()}")) for who in ("self", "children")}
        anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
        found = {"at": time.time(), "own_gb": round(int(anonymous.split()[1]) / 1e6, 2)}
        for who, usage in used.items():
            found[f"{who}_gb"] = round(usage.ru_maxrss / 1e6, 2)
            found[f"{who}_cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
        (self.folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps(found))
        trainer.strategy.barrier()
        os._exit(0)


def chat(number: int) -> dict[str, Any]:
    """One row in the shape of OpenHermes-2.5; each 100,000th has turns that nobody can follow."""
    rng = random.Random(number)
    turns = []
    for role in ["human", "gpt"] * (rng.randint(2, 4) if rng.random() < 0.2 else 1):
        length = min(2_000, 1 + int(WORDS[role] * rng.lognormvariate(0, 1)))
        start = rng.randrange(len(SAID) - length)
        turns.append({"from": role, "value": " ".join(SAID[start : start + length])})
    return {"id": str(number), "conversations": turns[::-1] if number % 100_000 == 50 else turns}


def stand_in(model: str, folder: Path) -> Path:
    """A folder with the model's tokenizer and a tiny random model of its vocabulary."""
    tokenizer = load_tokenizer(ModelSpec(model))
    config = AutoConfig.for_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8_192,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def started(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One start: seconds to the first step, and what each rank used."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )}  # fmt: skip
    command = [
        sys.executable, "-m", "lcf_lightning", "fit", "--config", str(CONFIG),
        "--data.source.train", str(folder / "chats.jsonl"), "--data.source.train_limit", str(args.chats),
        "--data.benchmarks", "null",  # which a fit opens before its first step
        "--model.sharer", json.dumps({"path": str(folder / "sharer"), "dtype": "float32"}),
        "--model.receiver", json.dumps({"path": str(folder / "receiver"), "dtype": "float32"}),
        "--data.num_workers", str(args.workers), "--trainer.max_steps", str(args.steps),
        "--trainer.val_check_interval", str(min(6_500, 65 * args.steps)),
        "--trainer.accelerator", "cpu", "--trainer.devices", str(args.ranks), "--trainer.precision", "32-true",
        "--trainer.strategy", "ddp" if args.ranks > 1 else "auto", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(folder / "run"), "--trainer.callbacks+", "startup.FirstStep",
        "--trainer.callbacks.folder", str(folder),
    ]  # fmt: skip
    before = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    files = sorted(folder.glob("rank_*.json"))
    if len(files) < args.ranks:
        raise SystemExit(done.stdout + done.stderr)
    ranks = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return {"seconds": round(max(rank.pop("at") for rank in ranks) - before, 1), "ranks": ranks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--chats", type=int, default=500_000)
    parser.add_argument("--steps", type=int, default=300, help="of 260 chats, as in the config")
    parser.add_argument("--workers", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="300 chats and one step, to see that it runs")
    args = parser.parse_args()
    if args.tiny:
        args.chats, args.steps, args.workers = 300, 1, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "chats.jsonl").open("w") as file:
            file.writelines(f"{json.dumps(chat(number))}\n" for number in range(args.chats))
        for side in ("sharer", "receiver"):
            stand_in(getattr(args, side), folder / side)
        starts = {name: started(folder, args) for name in ("first", "second")}
        kept = sum(path.stat().st_size for path in (folder / "cache").rglob("*.arrow")) / 1e9
    report = {**vars(args), "load": os.getloadavg(), "cache_gb": round(kept, 2), "starts": starts}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
