"""The paper's runs at their real size with random weights: seconds a training step, and latencies, on one card.

    python benchmarks/paper_scale.py

Builds both models of each config with random weights at their exact geometry (no hub, no data set: random tokens of the
config's lengths) and measures, each case in a process of its own with a time limit: a training step by phase, tokens
read a second, share of the card's peak, peak memory; and the times of a message, of T2T texts written on a cache of
fixed size, and of the floor. All cases take 9 minutes at most (``--budget``), those that matter most first. Found
figures stand in ``paper_scale.json``; the same command goes on where it stopped. Prints a page of Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from paper_case import PHASES, Case, Size, measured

from lcf_lightning.cli.faults import explain
from lcf_lightning.errors import SettingError, reason
from lcf_lightning.files import write_text

LCFX, CHATS = "qwen3_hotpotqa_lcfx", "qwen_openhermes_lcf128"
NINE = {"layers": (6, 8, 9, 10, 15, 16, 17, 19, 21)}  # which the paper keeps of 28
CARRY = {"pooler": {"class_path": "carry", "init_args": {"sources": 1}}}  # one model on both sides maps nothing
CASES = {
    "LCF-X, step": Case(LCFX, "train"),
    "LCF-X, latency": Case(LCFX, "latency"),
    "LCF-128, step": Case(CHATS, "train"),
    "C2C, step": Case("qwen_openhermes_c2c", "train"),
    "LCF-X and texts, latency": Case(LCFX, "latency", texts=True),
    "LCF-128, latency": Case(CHATS, "latency"),
    "C2C, latency": Case("qwen_openhermes_c2c", "latency"),
    "LCF-256, step": Case("qwen_openhermes_lcf256", "train"),
    "LCF-256, latency": Case("qwen_openhermes_lcf256", "latency"),
    "LCF-128 of 9 layers, latency": Case(CHATS, "latency", NINE),
    "prefix, latency": Case(LCFX, "latency", {"pooler": "prefix"}),
    "carry, latency": Case(LCFX, "latency", CARRY),
    "prefix, step": Case(LCFX, "train", {"pooler": "prefix"}),
    "carry, step": Case(LCFX, "train", CARRY),
    "LCF-128 and texts, latency": Case(CHATS, "latency", texts=True),
    "LCF-128, longest texts, step": Case(CHATS, "train", longest=True),
}
"""By name, those that matter most first."""
LAST = ("done", "out of memory")
"""What a case ends with that is not run again."""


def attempt(case: Case, size: Size) -> dict[str, Any]:
    """What a case found, or that it was too large for the card."""
    try:
        return {"status": "done", **measured(case, size)}
    except (RuntimeError, MemoryError) as error:
        told = explain(error, "the case is not run again")
        if told is None or not told[0].startswith("error: out of memory"):
            raise
        return {"status": "out of memory", "why": reason(error)}


def in_a_process(name: str, size: Size, limit: float) -> dict[str, Any]:
    """What `attempt` says of a case in a process of its own, which is ended after ``limit`` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable,
            __file__,
            "--case",
            name,
            "--size",
            json.dumps(asdict(size)),
            "--result",
            str(result),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                told = process.communicate(timeout=limit)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with whatever compiles for it
                return {"status": "time limit", "why": f"not done after {limit:.0f} s"}
        if process.returncode == -signal.SIGKILL:
            return {"status": "out of memory", "why": "killed by the system"}
        if process.returncode or not result.exists():
            return {"status": "failed", "why": (told.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def run(names: Sequence[str], file: Path, size: Size, budget: float, limit: float) -> dict[str, dict[str, Any]]:
    """Every case, as far as the budget goes; what ``file`` holds of them is not measured again.

    Raises:
        SettingError: If the file is of another size.
    """
    kept = json.loads(file.read_text()) if file.exists() else {"size": asdict(size), "cases": {}}
    if kept["size"] != asdict(size):
        raise SettingError(f"output={str(file)!r} is of {kept['size']}, not of {asdict(size)}; name another file.")
    ends, found = time.monotonic() + budget, kept["cases"]
    for name in names:
        if found.get(name, {}).get("status") in LAST:
            continue
        left = ends - time.monotonic()
        if left < 1:
            found[name] = {"status": "not run", "why": f"the budget of {budget:.0f} s is used up"}
        else:
            started = time.monotonic()
            found[name] = {**in_a_process(name, size, min(limit, left)), "seconds": time.monotonic() - started}
            print(f"{name}: {found[name]['status']}, {found[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
        write_text(file, json.dumps(kept, indent=1) + "\n")
    return {name: found[name] for name in names}


def page(found: dict[str, dict[str, Any]], size: Size) -> str:
    """Both tables."""
    devices: dict[str, float] = {}
    for device in (case["device"] for case in found.values() if "device" in case):
        name, reached = f"{device['name']}, torch {device['torch']}", device["product_tflop_per_second"]
        devices[name] = max(reached, devices.get(name, 0))
    said = "; ".join(f"{name} (a large matrix product: {reached:.3g} TFLOP/s)" for name, reached in devices.items())
    lines = [f"On {said or size.device}. Random weights and texts; {asdict(size)}.", ""]
    heads = ["training step", "parameters", "s a step", *(f"{phase}, ms" for phase in PHASES), "micro-step, ms",
             "tokens/s", "TFLOP/s", "of the peak", "memory, GB"]  # fmt: skip
    lines += _table(heads, [_step_row(name, case) for name, case in found.items() if CASES[name].kind == "train"])
    budgets = max((case.get("budgets", []) for case in found.values()), key=len, default=[])
    heads = ["latency, ms (medians)", "floor", "message: first token", "over the floor", "pool", "fuse", "whole answer",
             *(f"T2T-{budget} / message" for budget in budgets), "memory, GB"]  # fmt: skip
    rows = [_time_row(name, case, budgets) for name, case in found.items() if CASES[name].kind == "latency"]
    return "\n".join([*lines, "", *_table(heads, rows)])


def _step_row(name: str, case: dict[str, Any]) -> list[str]:
    if case["status"] != "done":
        return [name, f"{case['status']}: {case['why']}"]
    share = case["peak_share"]
    return [
        name, f"{case['parameters']:,}", f"{case['step_seconds']:.3g}",
        *(f"{case['phases_ms'][phase]:.1f}" for phase in PHASES), f"{case['micro_step_ms']:.1f}",
        f"{case['tokens_per_second']:,.0f}", f"{case['tflop_per_second']:.3g}",
        "–" if share is None else f"{share:.1%}", f"{case['peak_gb']:.1f}",
    ]  # fmt: skip


def _time_row(name: str, case: dict[str, Any], budgets: Sequence[int]) -> list[str]:
    if case["status"] != "done":
        return [name, f"{case['status']}: {case['why']}"]
    latency = case["latency"]
    message = latency["arms"]["message"]
    texts = (latency["ttft_vs_t2t"].get(str(budget)) for budget in budgets)
    return [
        name, f"{latency['floor']['median']:.1f}", f"{message['ttft']['median']:.1f}",
        f"{message['to_floor']['median']:.2f} ×", f"{message['stages']['pool']['median']:.1f}",
        f"{message['stages']['fuse']['median']:.1f}", f"{message['end_of_answer']['median']:.1f}",
        *("–" if text is None else f"{text['median']:.1f} ×" for text in texts), f"{case['peak_gb']:.1f}",
    ]  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    full = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---", *["---:"] * (len(heads) - 1)], *full)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("paper_scale.json"), help="also written: the same name .md")
    parser.add_argument("--budget", type=float, default=540, help="seconds of all cases together")
    parser.add_argument("--limit", type=float, default=150, help="seconds of one case")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the frozen models; else the config's")
    parser.add_argument("--layers", type=int, help="of each model, for a rehearsal")
    parser.add_argument("--lengths", type=float, default=1.0, help="what all lengths are multiplied with")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--repeats", type=int, default=5)
    for internal in ("--case", "--size", "--result"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        write_text(Path(args.result), json.dumps(attempt(CASES[args.case], Size(**json.loads(args.size)))))
        return
    size = Size(args.device, args.dtype, args.layers, 0.05 if args.tiny else args.lengths, args.tiny, args.repeats)
    try:
        found = run(args.only, args.output, size, args.budget, args.limit)
    except SettingError as error:
        parser.error(str(error))
    text = page(found, size)
    write_text(args.output.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
