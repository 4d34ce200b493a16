"""``evaluate``: every arm, the text baseline, the audit and the latency of a trained adapter, in one report."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.folder import read_config, record_scores, weights_file
from lcf_lightning.adapter.hub import is_hub_id
from lcf_lightning.cli.answers import REPORT, answers_of, file_of, put_together
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.config import FitConfig, parse, require_limit
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.discovery import class_path, in_package
from lcf_lightning.errors import SettingError, reason
from lcf_lightning.evaluation.arms import default_arms, find_arm, require_arms
from lcf_lightning.evaluation.latency import Latency, batches_of_one, measure
from lcf_lightning.evaluation.markdown import conclusions, to_markdown
from lcf_lightning.evaluation.plots import arms_figure, frontier_figure, save
from lcf_lightning.evaluation.prediction import Prediction, digest
from lcf_lightning.evaluation.predictions import by_example, predict_all
from lcf_lightning.evaluation.ranks import batches_of, dealt, gathered, rank
from lcf_lightning.evaluation.report import Report, build_report, summarise
from lcf_lightning.evaluation.tables import arms_table
from lcf_lightning.files import write_text
from lcf_lightning.link import Link
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.writer import Writer

COMMAND = COMMANDS["evaluate"]

_ANYHOW = ("batch_size", "eval_batch_size", "eval_batch_tokens", "group_by_length", "num_workers")  # change no answer


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate.

    Attributes:
        adapter: Adapter folder, or ``owner/name`` on the hub; by default the run's own.
        revision: Branch, tag or commit of an adapter on the hub; null for its default branch.
        arms: Arms to run, a list or separated by commas: ``t2t_N`` for any N ≥ 1, or class paths of your own, too; by
            default all that apply.
        output: Folder to write; by default evaluation/ or evaluation_ADAPTER/ of the run.
        repeats: Measurements of each arm's latency; 0 for none.
        limit: A seeded sample of so many examples, from every benchmark in proportion; null for all.
    """

    adapter: str | None = None
    revision: str | None = None
    arms: list[str] | str | None = None
    output: str | None = None
    repeats: int = 10
    limit: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.arms, str):
            object.__setattr__(self, "arms", [arm.strip() for arm in self.arms.split(",")])


def evaluate(args: list[str]) -> None:
    """Answer the test split under every arm and report, with as many processes as the trainer has devices.

    Each answers its share of the batches and writes them to a file of its own; the first puts them together, and
    measures latencies while the others wait.
    """
    options, config = parse(COMMAND, EvaluateOptions, args)
    require_limit(options.limit)
    named = None if options.arms is None else require_arms(options.arms)
    if options.repeats < 0:
        raise SettingError(f"repeats={options.repeats} must be at least 0.")
    fabric = config.launch()
    data = config.data()
    folder = config.adapter_folder(options.adapter, options.revision)
    adapter = config.read_adapter(folder, data)
    weights = read_config(folder)[1]  # another fit may write there meanwhile
    data.setup("test")
    if fabric.is_global_zero:
        _warn_of_differences(adapter, data)
    output = _output(options, config)
    with answers_of(_identity(options, config, folder, adapter), output, fabric) as known:
        link = config.link(adapter, data, fabric.device)
        writer = Writer.of(link)
        loader = data.evaluation_loader("test", options.limit, by_length=True)
        examples = [example for example, _ in loader.dataset]  # type: ignore[attr-defined]
        arms = list(named or default_arms(link.shared, data.prompts, examples))
        file = file_of(output, rank())
        found = by_example(gathered(_predictions(config, link, writer, dealt(loader), arms, file, known)))
        if fabric.is_global_zero:
            put_together(found.values(), output)
            predictions = [found[arm, digest(example)] for example in examples for arm in arms]
            latency = _latency(options, config, link, writer, data.prompts, examples, arms)
            sizes = {"examples": f"{len(examples)} of {data.size('test')}", "processes": fabric.world_size}
            facts = {"command": COMMAND.line(args), **sizes, **_facts(config, folder, adapter, data, link)}
            report = _report(predictions, latency, facts, output)
            if not is_hub_id(options.adapter or ""):  # whose files here are the hub's
                _to_card(folder, weights, report, data.tested_on)
        fabric.barrier()  # latencies are of the first process alone


def _latency(
    options: EvaluateOptions,
    config: FitConfig,
    link: Link,
    writer: Writer,
    prompts: PromptSettings,
    examples: Sequence[Example],
    arms: list[str],
) -> Latency | None:
    """The times of each arm, where these were asked for."""
    if not options.repeats:
        return None
    count = min(options.repeats, len(examples))
    spread = [examples[place * len(examples) // count] for place in range(count)]  # by length: short and long ones
    batches = batches_of_one(link, writer, prompts, spread)
    return measure(link, writer, batches, arms, config.max_new_tokens, options.repeats)


def _output(options: EvaluateOptions, config: FitConfig) -> Path:
    name = "evaluation" if options.adapter is None else f"evaluation_{Path(options.adapter).name}"
    return Path(options.output or config.run_folder / name)


def _identity(options: EvaluateOptions, config: FitConfig, folder: Path, adapter: CacheAdapter) -> dict[str, Any]:
    """What an answer depends on besides its example and its arm."""
    settings = config.values["data"].as_dict()
    settings["init_args"] = {name: value for name, value in settings["init_args"].items() if name not in _ANYHOW}
    identity = {
        "adapter": hashlib.sha256(_weights(folder).read_bytes()).hexdigest(),
        "data": json.loads(json.dumps(settings, default=str)),
        "max_new_tokens": config.max_new_tokens,
    }
    own = _own_code(options, adapter)
    return identity | ({"own_code": own} if own else {})


def _weights(folder: Path) -> Path:
    return weights_file(folder, read_config(folder)[1])


def _own_code(options: EvaluateOptions, adapter: CacheAdapter) -> dict[str, str]:
    """Parts and arms that are not of this package, with their settings: who changes them gets other answers."""
    settings = adapter.config.settings
    parts: dict[type, Any] = {type(adapter.fuser): settings.fuser}
    if adapter.pooler is not None:
        parts[type(adapter.pooler)] = settings.pooler
    kinds = [*parts, *(type(find_arm(arm)) for arm in options.arms or ())]
    return {
        class_path(kind): hashlib.sha256(f"{inspect.getsource(kind)}{parts.get(kind)}".encode()).hexdigest()
        for kind in kinds
        if not in_package(kind)
    }


def _warn_of_differences(adapter: CacheAdapter, data: PairDataModule) -> None:
    """Say where models or prompts are not those of the adapter's training; the text baseline's prompts are nobody's."""
    trained = [(model.dtype, model.quantization) for model in (adapter.config.sharer, adapter.config.receiver)]
    if trained != [(model.dtype, model.quantization) for model in (data.sharer, data.receiver)]:
        sys.stderr.write("warning: the adapter was trained on models of another dtype or quantization.\n")
    trained_with = adapter.config.metadata.get("prompts", asdict(data.prompts))
    # What an older adapter does not know it did not do, as the defaults do not.
    trained_with = {**asdict(PromptSettings()), **trained_with}
    differing = [
        name
        for name, value in asdict(data.prompts).items()
        if trained_with[name] != value and not name.startswith("text")
    ]
    if differing:
        sys.stderr.write(f"warning: the adapter was trained with other prompts: {', '.join(differing)} differ.\n")


def _predictions(
    config: FitConfig,
    link: Link,
    writer: Writer,
    loader: DataLoader[Any],
    arms: list[str],
    file: Path,
    known: Iterable[Prediction],
) -> list[Prediction]:
    """This process's answers, new or known; the first process shows a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=config.quiet or rank() > 0) as progress:
        rows = sum(map(len, batches_of(loader)))
        task = progress.add_task("answers", total=rows * len(arms))

        def advance(count: int) -> None:
            progress.advance(task, count)

        return predict_all(link, writer, loader, arms, config.max_new_tokens, file, advance, known)


def _facts(config: FitConfig, folder: Path, adapter: CacheAdapter, data: PairDataModule, link: Link) -> dict[str, Any]:
    trained = adapter.config.metadata
    packages = ("torch", "transformers", "lightning")
    return {
        "made_by": f"lcf-lightning {version('lcf-lightning')}",
        "adapter": str(folder),
        "training_steps": trained.get("steps"),
        "training_seed": trained.get("seed"),
        "adapter_parameters": adapter.parameter_counts()["total"],
        "adapter_bytes": _weights(folder).stat().st_size,
        "sharer": data.sharer.path,
        "receiver": data.receiver.path,
        "dtype": _held(data.sharer, data.receiver),
        "source": data.tested_on,
        "seed": data.seed,
        "max_new_tokens": config.max_new_tokens,
        "hardware": f"{link.receiver.device}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "prompts": asdict(data.prompts),
    }


def _report(predictions: list[Prediction], latency: Latency | None, facts: dict[str, Any], output: Path) -> Report:
    report = build_report(predictions, latency, facts)
    page = to_markdown(report)
    save(arms_figure(report), output / "arms.png")
    if latency is not None:
        save(frontier_figure(report), output / "frontier.png")
    write_text(output / REPORT, json.dumps(report, indent=2) + "\n")
    write_text(output / "report.md", page)
    console = Console()
    console.print(arms_table(summarise(predictions), "test split", str(output / "report.md")))
    console.print(Markdown(conclusions(report)))
    return report


def _to_card(folder: Path, weights: str | None, report: Report, of: str) -> None:
    """Have the adapter's model card say what was found, unless its folder is not to be written."""
    scores = {}
    for arm, figures in report["arms"].items():
        exact, f1 = figures["exact_match"], figures["f1"]
        interval = {} if exact is None else {"low": exact["low"], "high": exact["high"]}
        values = {"exact_match": exact and exact["value"], "f1": f1 and f1["value"], "loss": figures["loss"]}
        scores[arm] = {**values, **interval, "n": figures["n"]}
    try:
        record_scores(folder, weights, scores, of)
    except OSError as error:
        sys.stderr.write(f"the model card in {folder} could not be written: {reason(error)}\n")


def _held(sharer: ModelSpec, receiver: ModelSpec) -> str:
    """How both models are held in memory."""
    kinds = [model.dtype + (f", {model.quantization}" if model.quantization else "") for model in (sharer, receiver)]
    return " → ".join(dict.fromkeys(kinds))
