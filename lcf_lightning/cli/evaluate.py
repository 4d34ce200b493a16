"""``evaluate``: every arm, the text baseline, the audit and the latency of a trained adapter, in one report."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.folder import WEIGHTS_FILE
from lcf_lightning.cli.adapter import AdapterCLI
from lcf_lightning.data.datamodule import PairDataModule
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms import default_arms, require_arms
from lcf_lightning.evaluation.latency import Latency, batches_of_one, measure
from lcf_lightning.evaluation.markdown import conclusions, to_markdown
from lcf_lightning.evaluation.plots import arms_figure, frontier_figure, save
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import predict_all
from lcf_lightning.evaluation.report import arms_table, build_report, summarise
from lcf_lightning.files import move_aside, write_text
from lcf_lightning.link import Link
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.writer import Writer

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"
_OWN = {PREDICTIONS, REPORT, "settings.json", "report.md", "arms.png", "frontier.png"}
_ANYHOW = ("batch_size", "eval_batch_size", "num_workers")  # data settings that change no answer


class EvaluateCLI(AdapterCLI):
    """Answers the test split under every arm, in one process on one device, and reports."""

    def __init__(self, args: list[str]) -> None:
        self.command = f"python -m lcf_lightning evaluate {shlex.join(args)}"
        super().__init__(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--arms", type=list[str] | None, help="Arms to run, t2t_N for any N ≥ 1; by default all that apply."
        )
        parser.add_argument(
            "--output", type=str | None, help="By default evaluation/ or evaluation_ADAPTER/ of the run."
        )
        parser.add_argument("--repeats", type=int, default=10, help="Measurements of each arm's latency; 0 for none.")

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        config = self.config
        named = require_arms(config["arms"]) if config["arms"] is not None else None
        if config["repeats"] < 0:
            raise SettingError(f"repeats={config['repeats']} must be at least 0.")
        adapter, data = self.adapter_and_data()
        folder = self.adapter_folder
        data.setup("test")
        output = self._begin(folder, adapter, data)
        link = self.link(adapter, data)
        writer = Writer.of(link)
        loader = data.evaluation_loader("test", config["limit"], by_length=True)
        examples = (example for example, _ in loader.dataset)  # type: ignore[attr-defined]
        arms = list(named or default_arms(link.shared, data.prompts, examples))
        answers = self._answers(link, writer, loader, arms, output / PREDICTIONS)
        latency = self._latency(link, writer, data.prompts, loader, arms)
        self._report(answers, latency, self._facts(folder, adapter, data, link), output)

    def _begin(self, folder: Path, adapter: CacheAdapter, data: PairDataModule) -> Path:
        """The output folder, with nothing in it but what belongs to this adapter and these settings."""
        trained = [(model.dtype, model.quantization) for model in (adapter.config.sharer, adapter.config.receiver)]
        if trained != [(model.dtype, model.quantization) for model in (data.sharer, data.receiver)]:
            sys.stderr.write("warning: the adapter was trained on models of another dtype or quantization.\n")
        differing = self._differing_prompts(adapter, data)
        if differing:
            sys.stderr.write(f"warning: the adapter was trained with other prompts: {', '.join(differing)} differ.\n")
        name = "evaluation" if self.config["adapter"] is None else f"evaluation_{Path(self.config['adapter']).name}"
        output = Path(self.config["output"] or self.run_folder / name)
        settings = self.config["data"].as_dict()
        settings["init_args"] = {name: value for name, value in settings["init_args"].items() if name not in _ANYHOW}
        identity = {
            "adapter": hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
            "data": json.loads(json.dumps(settings, default=str)),
            "max_new_tokens": self.config["model"]["max_new_tokens"],
        }
        foreign = sorted({path.name for path in output.iterdir()} - _OWN) if output.is_dir() else []
        if foreign:
            raise SettingError(f"output={str(output)!r} must be a folder of its own; it holds {', '.join(foreign)}.")
        file = output / "settings.json"
        if not file.is_file() or json.loads(file.read_text()) != identity:
            aside = move_aside(output, (PREDICTIONS, REPORT))
            if aside is not None:
                sys.stderr.write(
                    f"{output} held the evaluation of another adapter or other settings; moved to {aside}.\n"
                )
            write_text(file, json.dumps(identity, indent=2) + "\n")
        return output

    @staticmethod
    def _differing_prompts(adapter: CacheAdapter, data: PairDataModule) -> list[str]:
        """Prompt settings that are not those of the adapter's training; those of the text baseline are nobody's."""
        trained, own = adapter.config.metadata.get("prompts", {}), asdict(data.prompts)
        return [name for name, value in trained.items() if own.get(name) != value and not name.startswith("text")]

    def _answers(
        self, link: Link, writer: Writer, loader: DataLoader[Any], arms: list[str], file: Path
    ) -> list[Prediction]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        quiet = self.config["trainer"]["enable_progress_bar"] is False
        with Progress(*columns, TimeRemainingColumn(), disable=quiet) as progress:
            task = progress.add_task("answers", total=len(loader.dataset) * len(arms))  # type: ignore[arg-type]
            try:
                return predict_all(
                    link, writer, loader, arms, self.max_new_tokens, file, lambda count: progress.advance(task, count)
                )
            except KeyboardInterrupt:
                sys.stderr.write(f"interrupted; the same command goes on from {file}.\n")
                raise SystemExit(130) from None

    def _latency(
        self, link: Link, writer: Writer, prompts: PromptSettings, loader: DataLoader[Any], arms: list[str]
    ) -> Latency | None:
        repeats = self.config["repeats"]
        if repeats == 0:
            return None
        examples = [example for example, _ in loader.dataset]  # type: ignore[attr-defined]
        examples = examples[:: max(1, len(examples) // repeats)][:repeats]  # they stand by length: short and long ones
        batches = batches_of_one(link, writer, prompts, examples)
        return measure(link, writer, batches, arms, self.max_new_tokens, repeats)

    def _facts(self, folder: Path, adapter: CacheAdapter, data: PairDataModule, link: Link) -> dict[str, Any]:
        trained = adapter.config.metadata
        packages = ("lcf-lightning", "torch", "transformers", "lightning")
        return {
            "command": self.command,
            "adapter": str(folder),
            "training_steps": trained.get("steps"),
            "training_seed": trained.get("seed"),
            "adapter_parameters": adapter.parameter_counts()["total"],
            "adapter_bytes": (folder / WEIGHTS_FILE).stat().st_size,
            "sharer": data.sharer.path,
            "receiver": data.receiver.path,
            "dtype": _held(data.sharer, data.receiver),
            "source": str(data.source),
            "seed": data.seed,
            "max_new_tokens": self.max_new_tokens,
            "hardware": f"{link.receiver.device}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
            "versions": ", ".join(f"{name} {version(name)}" for name in packages),
            "prompts": asdict(data.prompts),
        }

    def _report(self, answers: list[Prediction], latency: Latency | None, facts: dict[str, Any], output: Path) -> None:
        report = build_report(answers, latency, facts)
        page = to_markdown(report)
        save(arms_figure(report["arms"]), output / "arms.png")
        if latency is not None:
            save(frontier_figure(report["arms"], latency), output / "frontier.png")
        write_text(output / REPORT, json.dumps(report, indent=2) + "\n")
        write_text(output / "report.md", page)
        console = Console()
        console.print(arms_table(summarise(answers), "test split", str(output / "report.md")))
        console.print(Markdown(conclusions(report)))


def _held(sharer: ModelSpec, receiver: ModelSpec) -> str:
    """How both models are held in memory."""
    kinds = [model.dtype + (f", {model.quantization}" if model.quantization else "") for model in (sharer, receiver)]
    return " → ".join(dict.fromkeys(kinds))
