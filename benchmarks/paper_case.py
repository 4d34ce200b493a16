"""One case of `paper_scale.py`: a training step by phase, or the latencies of one adapter, of a config of the paper."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from random_pair import Lengths, examples, random_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lcf_lightning import AdapterConfig, CacheAdapter, LCFModule
from lcf_lightning.adapter.config import ModelIdentity
from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.params import COMMAND
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.evaluation.caches import Reading
from lcf_lightning.evaluation.latency import batches_of_one, measure
from lcf_lightning.evaluation.prediction import answer_losses
from lcf_lightning.link import Link
from lcf_lightning.optimizing import build_optimizer
from lcf_lightning.stopwatch import Stopwatch
from lcf_lightning.writer import Writer

CONFIGS = Path(__file__).parents[1] / "configs"
LENGTHS = {  # medians; HotpotQA's are of the first 300 rows of a copy of it, those of the chats are assumed
    "qwen3_hotpotqa_lcfx": Lengths(passages=5, passage=132, question=21, answer=4, spread=0.4),
    "chats": Lengths(passages=0, passage=0, question=120, answer=220, spread=0.9, most=1_000),
}
LONGEST = Lengths(passages=0, passage=0, question=1_000, answer=1_024)
"""All that the chats' config lets through: 2,048 tokens, its template included, of which an answer has 1,024."""
PHASES = ("prefill", "fuse", "continuation", "backward", "optimizer")
PEAKS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bf16 TFLOP/s of the makers' data sheets, by what the name of a card holds."""
Watch = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Case:
    """What is measured of one adapter.

    Attributes:
        config: The config's name.
        kind: ``train`` or ``latency``.
        settings: Settings of the adapter that differ from the config's.
        texts: Whether T2T is timed beside the message.
        longest: Whether every text is as long as the config lets through.
    """

    config: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    texts: bool = False
    longest: bool = False


@dataclass(frozen=True)
class Size:
    """How much of the real thing is measured, and where.

    Attributes:
        device: ``cuda`` or ``cpu``.
        dtype: Of the frozen models; null for the config's.
        layers: Of each model, at most; null for all.
        lengths: What all lengths are multiplied with.
        tiny: Whether the models are tiny ones.
        repeats: Micro-steps, or timed answers.
    """

    device: str
    dtype: str | None = None
    layers: int | None = None
    lengths: float = 1.0
    tiny: bool = False
    repeats: int = 5


@dataclass(frozen=True)
class Bench:
    """A config's pair, with random weights, on its device."""

    link: Link
    module: LCFModule
    data: PairDataModule
    accumulate: int
    lengths: Lengths
    dtype: str

    @classmethod
    def of(cls, case: Case, size: Size) -> Bench:
        """What a case is measured on; no hub, no rows."""
        file = str(CONFIGS / f"{case.config}.yaml")
        config = FitConfig(config_parser(COMMAND).parse_args(with_bases(["--config", file])))
        with torch.device("meta"):
            module = config.module()
        device, dtype = torch.device(size.device), size.dtype or module.sharer.dtype
        paths = (module.sharer.path, module.receiver.path)
        models = {path: random_model(path, dtype, device, size.layers, size.tiny) for path in dict.fromkeys(paths)}
        sharer, receiver = (models[path] for path in paths)
        settings = replace(module.adapter.config.settings, **case.settings)
        if settings.layers is not None and (depth := receiver.geometry.layers) < 28:  # as spread as they were
            settings = replace(settings, layers=tuple(sorted({layer * depth // 28 for layer in settings.layers})))
        identities = [ModelIdentity(model.spec.path, None, model.geometry, dtype) for model in (sharer, receiver)]
        with torch.device(device):
            adapter = CacheAdapter(AdapterConfig(*identities, replace(settings, d=16 if size.tiny else settings.d)))
        if config.values["model"]["activation_checkpointing"]:
            adapter.recompute_blocks()
        if adapter.carries:
            adapter.pooler.get_buffer("deviation").fill_(1)  # as a fit would measure it: not zero
        lengths = LONGEST if case.longest else LENGTHS.get(case.config, LENGTHS["chats"])
        accumulate = config.values["trainer"]["accumulate_grad_batches"]
        return cls(
            Link(sharer, receiver, adapter), module, config.data(), accumulate, lengths.times(size.lengths), dtype
        )

    @property
    def device(self) -> torch.device:
        return self.link.receiver.device

    def examples(self, count: int) -> list[Any]:
        return examples(count, self.lengths, self.link.receiver.config.vocab_size)


def measured(case: Case, size: Size) -> dict[str, Any]:
    """What a case takes, JSON-ready."""
    torch.manual_seed(0)
    if size.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    bench = Bench.of(case, size)
    found = _train(bench, size) if case.kind == "train" else _latency(bench, case, size)
    parameters = bench.link.adapter.parameter_counts()["total"]
    return {"parameters": parameters, "dtype": bench.dtype, "device": _device(size), **found, "peak_gb": _peak_gb(size)}


def _train(bench: Bench, size: Size) -> dict[str, Any]:
    """Seconds of an optimizer step as the config has it, and where they go."""
    link, count = bench.link, bench.data.batch_size
    collator = Writer.of(link).collator(bench.data.prompts)
    rows = bench.examples(count * size.repeats)
    batches = [collator.train(rows[at : at + count]).to(bench.device) for at in range(0, len(rows), count)]
    link.adapter.train()
    optimizer = build_optimizer(bench.module.optimizer, link.adapter)
    watch = Stopwatch(bench.device)
    with FlopCounterMode(display=False) as counter:  # slow, and a warm-up
        losses = [_micro_step(bench, batch, watch) for batch in batches[:1]]
    flop = counter.get_total_flops()
    for batch in batches[1:]:  # every length once, for whoever tunes or compiles by shape
        losses.append(_micro_step(bench, batch, watch))
    _optimize(link.adapter, optimizer, watch)
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for batch in batches:
        watch = Stopwatch(bench.device)
        losses.append(_micro_step(bench, batch, watch))
        _optimize(link.adapter, optimizer, watch)
        for phase in PHASES:
            phases[phase].append(watch.milliseconds[phase])
    watch = Stopwatch(bench.device)
    with watch("whole"):  # no look at the device in between
        losses += [_micro_step(bench, batch, _unwatched) for batch in batches]
    milliseconds = {phase: median(times) for phase, times in phases.items()}
    micro = watch.milliseconds["whole"] / len(batches)
    tokens, padding = _tokens(batches)
    share = sum(phases[phase][0] for phase in PHASES[:-1])  # of the batch whose operations were counted
    return {
        "batch": count, "accumulate": bench.accumulate, "phases_ms": milliseconds, "micro_step_ms": micro,
        "step_seconds": (bench.accumulate * micro + milliseconds["optimizer"]) / 1e3,
        "tokens_a_micro_step": tokens, "padding": padding, "tokens_per_second": tokens / micro * 1e3,
        "tflop_first_micro_step": flop / 1e12, "tflop_per_second": flop / share / 1e9,
        "peak_share": _share(flop / share / 1e9, bench.dtype, size), "finite": all(map(_is_finite, losses)),
    }  # fmt: skip


def _micro_step(bench: Bench, batch: Batch, watch: Watch) -> Tensor:
    """`LCFModule.training_step` and its backward, phase by phase."""
    link = bench.link
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.dtype == "bfloat16"):
        with watch("prefill"):
            sharer, receiver = link.read_sharer(batch.sharer), link.read_receiver(batch.receiver)
        with watch("fuse"):
            message = link.pool(sharer, batch.index, batch.extent)
            cache = link.fuse(receiver, message, temperature=1.0, question=batch.question)
        with watch("continuation"):
            loss = answer_losses(link, Reading(cache, batch.last, batch.question), batch).mean()
    with watch("backward"):
        loss.backward()
    return loss.detach()


def _optimize(adapter: nn.Module, optimizer: torch.optim.Optimizer, watch: Watch) -> None:
    with watch("optimizer"):
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _unwatched(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def _latency(bench: Bench, case: Case, size: Size) -> dict[str, Any]:
    """Latencies as `evaluate` measures them, every gate open."""
    link, writer = bench.link, Writer.of(bench.link)
    link.adapter.eval()
    nn.init.ones_(link.adapter.gates.logits)
    inputs = batches_of_one(link, writer, bench.data.prompts, bench.examples(size.repeats))
    budgets = (2, 4) if size.tiny else (50, 100, 150, 200)
    arms = ["own_context", *(f"t2t_{budget}" for budget in budgets if case.texts)]
    found = measure(link, writer, inputs, arms, bench.module.max_new_tokens, size.repeats, static_cache=True)
    return {"budgets": list(budgets) if case.texts else [], "latency": found}


def _tokens(batches: Iterable[Batch]) -> tuple[float, float]:
    """Tokens that a micro-step reads, prompts of both models and answers, and the share of padding beside them."""
    masks = [mask for row in batches for mask in (row.sharer.mask, row.receiver.mask, row.answer_mask)]
    real, all_of_them = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return real / (len(masks) // 3), 1 - real / all_of_them


def _is_finite(loss: Tensor) -> bool:
    return bool(torch.isfinite(loss))


def _share(tflops: float, dtype: str, size: Size) -> float | None:
    """Of the card's peak by its data sheet; null where that is not known here."""
    name = torch.cuda.get_device_name() if size.device == "cuda" else ""
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if peak is None or dtype != "bfloat16" else tflops / peak


def _device(size: Size) -> dict[str, Any]:
    """What it ran on, and what a large matrix product reaches there."""
    device, width = torch.device(size.device), 8192 if size.device == "cuda" else 512
    dtype = torch.float32 if size.dtype == "float32" else torch.bfloat16
    one, other = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        watch = Stopwatch(device)
        with watch("product"):
            one @ other
        seconds.append(watch.milliseconds["product"] / 1e3)
    name = torch.cuda.get_device_name() if size.device == "cuda" else "cpu"
    return {"name": name, "torch": torch.__version__, "product_tflop_per_second": 2 * width**3 / min(seconds) / 1e12}


def _peak_gb(size: Size) -> float:
    """Greatest memory in use, in 10⁹ bytes: of tensors on the card, or of the process."""
    if size.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
