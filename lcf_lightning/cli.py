"""The command line: ``fit``, ``validate``, ``test``, ``predict`` (Lightning's) and ``params``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from lcf_lightning.adapter.adapter import WEIGHTS_FILE
from lcf_lightning.callbacks import AdapterExport, CommunicationAccuracy
from lcf_lightning.callbacks.accuracy import gathered
from lcf_lightning.errors import LCFError, SettingError
from lcf_lightning.evaluation.report import arms_table
from lcf_lightning.files import write_text
from lcf_lightning.loggers import ContinuedCSVLogger
from lcf_lightning.module import LCFModule

CallbackT = TypeVar("CallbackT", bound=Callback)
CHECKPOINT_EVERY = 100  # training steps


class LCFCLI(LightningCLI):
    """LightningCLI with a run folder: ``trainer.default_root_dir`` holds all that a run writes."""

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        super().__init__(
            LCFModule,
            None,  # any LightningDataModule; `params` needs none
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs/lcf", "num_sanity_val_steps": 0, "gradient_clip_val": 1.0},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--base", type=str | None, help="In a config file: the file it extends, beside it.")
        for role in ("sharer", "receiver"):
            parser.link_arguments(f"model.{role}", f"data.init_args.{role}")
        for target in ("model.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    @property
    def run_folder(self) -> Path:
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    def before_instantiate_classes(self) -> None:
        self.config.get(str(self.subcommand), self.config)["base"] = None  # what is saved stands alone
        if self.subcommand and self._get(self.config, "data") is None:
            raise SettingError("data=null must name a data module, such as ContextMismatchDataModule.")
        if self.subcommand == "fit" and not self._get(self.config, "ckpt_path"):
            _move_aside(self.run_folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        callbacks = list(config["callbacks"] or [])
        defaults = [Timer(), AdapterExport(), CommunicationAccuracy()]
        if config["enable_checkpointing"] is not False:
            defaults.append(
                ModelCheckpoint(
                    self.run_folder / "checkpoints", every_n_train_steps=CHECKPOINT_EVERY, save_last=True, save_top_k=1,
                    monitor="step", mode="max",
                )
            )  # fmt: skip
        if config["enable_progress_bar"] is not False:
            defaults.append(RichProgressBar())
        callbacks += [extra for extra in defaults if not any(isinstance(given, type(extra)) for given in callbacks)]
        if config["logger"] in (None, True):
            kwargs["logger"] = [
                ContinuedCSVLogger(self.run_folder.parent, self.run_folder.name, version=""),
                TensorBoardLogger(self.run_folder, "tensorboard", version=""),
            ]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}  # never unpickle a checkpoint

    def after_fit(self) -> None:
        """Answer the test split under every arm; print the table and write ``summary.json``."""
        if self._get(self.config, "trainer")["fast_dev_run"]:
            return
        steps = self.trainer.global_step
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self._print_table("test")
        if not self.trainer.is_global_zero:
            return
        adapter = self._callback(AdapterExport).target(self.trainer) / WEIGHTS_FILE
        summary = {
            **(self._accuracy.summary or {}),
            "adapter": {
                "parameters": self.model.adapter.parameter_counts()["total"],
                "bytes": adapter.stat().st_size,
            },
            "train_seconds": round(self._callback(Timer).time_elapsed("train"), 1),
            "steps": steps,
            "seed": self.model.seed,
        }
        write_text(self.run_folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def after_validate(self) -> None:
        self._print_table("validation")

    def after_test(self) -> None:
        self._print_table("test")

    def predict(self, **kwargs: Any) -> None:
        """Write the message arm's answers to ``predictions.jsonl`` in the run folder."""
        rows = gathered([row for batch in self.trainer.predict(**kwargs) or [] for row in batch])
        distinct = {row["id"]: row for row in rows}.values()
        if self.trainer.is_global_zero:
            text = "".join(f"{json.dumps(row)}\n" for row in distinct)
            write_text(self.run_folder / "predictions.jsonl", text)

    @property
    def _accuracy(self) -> CommunicationAccuracy:
        return self._callback(CommunicationAccuracy)

    def _callback(self, kind: type[CallbackT]) -> CallbackT:
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]
        return next(callback for callback in callbacks if isinstance(callback, kind))

    def _print_table(self, split: str) -> None:
        if self.trainer.is_global_zero and self._accuracy.summary is not None:
            Console().print(arms_table(self._accuracy.summary, f"{split} split", str(self.run_folder)))


class ParamsCLI(LCFCLI):
    """``params``: trainable parameters and adapter size, from the models' configs alone."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")

    def instantiate_classes(self) -> None:
        # Only the model: a config for eight GPUs must count here too, and no data set be read.
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LCFModule, "model")
        with torch.device("meta"):
            adapter = parser.instantiate_classes(Namespace(model=self.config["model"]))["model"].adapter
        counts = adapter.parameter_counts()
        sizes = {**counts, "layers": len(adapter.config.receiver_layers), "megabytes_bf16": counts["total"] * 2 / 1e6}
        if self.config["json"]:
            sys.stdout.write(json.dumps(sizes) + "\n")
            return
        lines = [
            f"trainable parameters  {sizes['total']:,}",
            f"  per layer           {sizes['per_layer']:,} × {sizes['layers']}",
            f"  pool                {sizes['pool']:,}",
            f"adapter in bf16       {sizes['megabytes_bf16']:.1f} MB",
        ]
        sys.stdout.write("\n".join(lines) + "\n")


@rank_zero_only
def _move_aside(folder: Path) -> None:
    """Nothing written is ever lost: an earlier run in the same folder keeps its files under another name."""
    if (folder / "config.yaml").exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime((folder / "config.yaml").stat().st_mtime))
        aside = folder.with_name(f"{folder.name}-{stamp}")
        os.rename(folder, aside)
        rank_zero_info(f"{folder} held an earlier run; moved to {aside}. To continue a run, give --ckpt_path last.")


def _with_bases(args: Sequence[str]) -> list[str]:
    """The arguments with, before every ``--config F``, the config files that F extends."""
    expanded: list[str] = []
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name in ("-c", "--config"):
            for base in _bases(Path(value or following)):
                expanded += ["--config", str(base)]
        expanded.append(argument)
    return expanded


def _bases(file: Path) -> list[Path]:
    """The chain of files that ``file`` extends, the first to be read first."""
    chain: list[Path] = []
    while file.is_file():
        base = (yaml.safe_load(file.read_text()) or {}).get("base")
        if base is None:
            break
        file = file.parent / base
        if file in chain or not file.is_file():
            raise SettingError(f"base={base!r} must name another config file in {file.parent}.")
        chain.insert(0, file)
    return chain


def _own_cause(error: BaseException | None) -> LCFError | None:
    """The package's own error behind one that jsonargparse made of it, if there is one."""
    while error is not None and not isinstance(error, LCFError):
        error = error.__cause__
    return error


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        arguments = _with_bases(arguments)
        if arguments[:1] == ["params"]:
            ParamsCLI(arguments[1:])
        else:
            LCFCLI(arguments)
    except (LCFError, ValueError) as error:
        ours = _own_cause(error)
        if ours is None:
            raise
        sys.stderr.write(f"error: {ours}\n")
        raise SystemExit(2) from error
