"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line, with a run folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from rich.console import Console

from lcf_lightning.adapter.folder import WEIGHTS_FILE
from lcf_lightning.callbacks import AdapterExport, CommunicationAccuracy, GateMonitor, LastCheckpoint, Speedup
from lcf_lightning.checkpoints import AtomicCheckpointIO, last_checkpoint, newest_checkpoint, steps_of
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.config import TRAINER_DEFAULTS, add_links, require_accelerator, require_data
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.faults import goes_on
from lcf_lightning.cli.parser import LCFParser
from lcf_lightning.cli.run_folder import EarlierRun, RunConfig, TestReader
from lcf_lightning.cli.said import FitProgressBar, Overview, what_next
from lcf_lightning.discovery import import_named
from lcf_lightning.errors import SettingError, reason
from lcf_lightning.evaluation.ranks import gathered
from lcf_lightning.evaluation.tables import arms_table
from lcf_lightning.evaluation.verdict import in_words
from lcf_lightning.files import FolderLock, write_text
from lcf_lightning.loggers import ContinuedCSVLogger
from lcf_lightning.module import LCFModule

CallbackT = TypeVar("CallbackT", bound=Callback)


class LCFCLI(LightningCLI):
    """LightningCLI with a run folder: ``trainer.default_root_dir`` holds all that a run writes."""

    _lock: FolderLock | None = None  # of the process that writes logs, in a fit
    _earlier: EarlierRun | None = None  # which the fit has moved aside
    _steps_before: int | None = None  # of the checkpoint that is continued or evaluated

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            LCFModule,
            None,  # any LightningDataModule; `params` needs none
            parser_class=LCFParser,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=with_bases(args),
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        command = COMMANDS[subcommand]
        kwargs |= {"description": command.description, "usage": command.usage}
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_links(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyperparameters are a record; what a command says is not changed by them."""

    @property
    def run_folder(self) -> Path:
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    def before_instantiate_classes(self) -> None:
        import_named(self._get(self.config, "modules"))
        if self.subcommand == "fit":
            goes_on.set(lambda: _from_checkpoint(last_checkpoint(self.run_folder)))
        require_data(self._get(self.config, "data"))
        self._check_checkpoint()
        self._check_run_folder()

    def _check_checkpoint(self) -> None:
        """Before any weight is loaded: what is to be evaluated or continued must be there, and whole."""
        settings = self.config[str(self.subcommand)]
        path = settings["ckpt_path"]
        if path == "last" or (path is None and self.subcommand != "fit"):
            newest = newest_checkpoint(self.run_folder)
            if newest is None and self.subcommand != "fit":
                raise SettingError(
                    f"ckpt_path={path or 'null'} needs a trained adapter in {last_checkpoint(self.run_folder)}; "
                    "fit first, or name one."
                )
            settings["ckpt_path"], self._steps_before = (None, None) if newest is None else (str(newest[0]), newest[1])
        elif path is not None and not Path(path).is_file():
            raise SettingError(f"ckpt_path={path!r} must be an existing checkpoint, or last.")
        elif path is not None:
            self._steps_before = steps_of(Path(path))

    def _check_run_folder(self) -> None:
        """Before any weight is loaded: results need a place."""
        place = next(path for path in (self.run_folder, *self.run_folder.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise SettingError(f"default_root_dir={str(self.run_folder)!r} must be a folder that can be written.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")  # 32-true with TF32
        config = self._get(self.config_init, "trainer")
        require_accelerator(config["accelerator"])
        callbacks = _listed(config["callbacks"])
        defaults = [Timer(), TestReader(), Overview(), AdapterExport(), CommunicationAccuracy(), GateMonitor()]
        if self._get(self.config, "model")["adapter"]["pooler"] is not None:  # else the receiver has read it all
            defaults.append(Speedup())
        if config["enable_checkpointing"] is not False:
            defaults.append(LastCheckpoint())
        if config["enable_progress_bar"] is not False and not any(isinstance(bar, ProgressBar) for bar in callbacks):
            defaults.append(FitProgressBar())
        callbacks += [extra for extra in defaults if not any(isinstance(given, type(extra)) for given in callbacks)]
        if config["logger"] is not False:
            kwargs["logger"] = self._loggers([] if config["logger"] is True else _listed(config["logger"]))
        plugins = _listed(config["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (TypeError, ValueError) as error:
            raise SettingError(f"trainer: {reason(error)}") from error

    def _loggers(self, given: list[Any]) -> list[Any]:
        """CSV in the run folder whatever is given, and TensorBoard where nothing is.

        Evaluations log beside the run, not into its training curves.
        """
        folder = self.run_folder if self.subcommand == "fit" else self.run_folder / str(self.subcommand)
        if not given:
            before = self._steps_before
            given = [TensorBoardLogger(folder, "tensorboard", "", default_hp_metric=False, purge_step=before)]
        if not any(isinstance(each, ContinuedCSVLogger) for each in given):
            given = [ContinuedCSVLogger(folder.parent, folder.name, version=""), *given]
        return given

    def _run_subcommand(self, subcommand: str) -> None:
        """Whoever fits has the run folder alone: two would write into each other's logs, and one adapter be lost."""
        alone = subcommand == "fit" and self.trainer.is_global_zero
        if not alone or self._get(self.config, "trainer")["fast_dev_run"]:
            super()._run_subcommand(subcommand)
            return
        with FolderLock(self.run_folder, "default_root_dir") as self._lock:
            try:
                super()._run_subcommand(subcommand)
            except BaseException:
                if self._earlier is not None and self.trainer.global_step == 0:
                    self._earlier.put_back()
                raise

    def before_fit(self) -> None:
        """Nothing written is ever lost: a run that begins moves an earlier one in its folder aside."""
        if self._lock is not None and self.config["fit"]["ckpt_path"] is None:
            self._earlier = EarlierRun(self._lock)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}  # never unpickle a checkpoint

    def after_fit(self) -> None:
        """Answer the test split; print table and verdict, write ``summary.json``, tell loggers what came of it."""
        if self._get(self.config, "trainer")["fast_dev_run"]:
            return
        steps = self.trainer.global_step
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(self.trainer)  # the run's very end, also between two intervals
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self._print_table("test")
        if not self.trainer.is_global_zero:
            return
        adapter = self._callback(AdapterExport).target(self.trainer) / WEIGHTS_FILE
        summary = {
            **(self._accuracy.summary or {}),
            "verdict": self._accuracy.verdict,
            "speedup": {name: ratio for each in self._callbacks(Speedup) for name, ratio in each.ratios.items()},
            "adapter": {
                "parameters": self.model.adapter.parameter_counts()["total"],
                "bytes": adapter.stat().st_size,
            },
            "train_seconds": round(self._callback(Timer).time_elapsed("train"), 1),
            "steps": steps,
            "seed": self.model.seed,
        }
        write_text(self.run_folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        found = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # which shows hyperparameters beside what came of them, or none
                logger.log_hyperparams(logger.hparams, found, steps)
                logger.finalize("success")
        sys.stdout.write(what_next(self.run_folder))

    def after_validate(self) -> None:
        self._print_table("validation")

    def after_test(self) -> None:
        self._print_table("test")

    def predict(self, **kwargs: Any) -> None:
        """Write the message arm's answers to ``predictions.jsonl`` in the run folder."""
        rows = gathered([row for batch in self.trainer.predict(**kwargs) or [] for row in batch])
        distinct = {row["id"]: row for row in rows}.values()
        if self.trainer.is_global_zero:
            file = self.run_folder / "predictions.jsonl"
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in distinct))
            sys.stdout.write(f"{file}: {len(distinct)} answers\n")

    @property
    def _accuracy(self) -> CommunicationAccuracy:
        return self._callback(CommunicationAccuracy)

    def _callback(self, kind: type[CallbackT]) -> CallbackT:
        return self._callbacks(kind)[0]

    def _callbacks(self, kind: type[CallbackT]) -> list[CallbackT]:
        callbacks: list[Callback] = vars(self.trainer)["callbacks"]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def _print_table(self, split: str) -> None:
        """And, of a test, write it into the adapter's model card."""
        if self.trainer.is_global_zero and self._accuracy.summary is not None:
            if split == "test":
                self._callback(AdapterExport).record(self.trainer, self.model, self._accuracy.summary)
            Console().print(arms_table(self._accuracy.summary, f"{split} split", str(self.run_folder)))
            if self._accuracy.verdict is not None:
                sys.stdout.write(f"{in_words(self._accuracy.verdict)}\n")


def _listed(given: Any) -> list[Any]:
    """What a setting names that takes one, several or none."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def _from_checkpoint(file: Path) -> str:
    """How a fit goes on, whose checkpoint this is or would have been."""
    if file.is_file():
        return f"the same command with --ckpt_path last continues from {file}"
    return "no checkpoint has been written yet: the same command begins anew"
