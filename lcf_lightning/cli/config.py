"""A fit's config, read by commands that need no Trainer; nothing is built before it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterSettings
from lcf_lightning.adapter.folder import local_folder
from lcf_lightning.adapter.subset import without_closed_layers
from lcf_lightning.cli.commands import Command
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.started import tell_of_signals
from lcf_lightning.data.datamodule import PairDataModule, SharedContextDataModule
from lcf_lightning.discovery import import_named
from lcf_lightning.errors import SettingError, reason
from lcf_lightning.link import Link, load_pair
from lcf_lightning.models.loading import geometry_of
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.models.store import PrefillSettings
from lcf_lightning.module import LCFModule

OptionsT = TypeVar("OptionsT")
TRAINER_DEFAULTS = {
    "default_root_dir": "runs/lcf", "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "enable_model_summary": False
}  # fmt: skip
_PATIENCE = timedelta(days=1)  # with which processes wait for each other; who starts them ends all when one fails


def add_links(parser: LightningArgumentParser) -> None:
    """What a config may hold besides trainer, model and data, and what follows from what."""
    parser.add_argument("--base", type=str | None, help="In a config file: the file it extends, beside it.")
    parser.add_argument(
        "--modules",
        type=list[str] | str,
        default=[],
        help="Modules to import first, such as those that define model families.",
    )
    for role in ("sharer", "receiver"):
        parser.link_arguments(f"model.{role}", f"data.init_args.{role}")
    for target in ("model.seed", "data.init_args.seed"):
        parser.link_arguments("seed_everything", target)


@dataclass(frozen=True)
class FitConfig:
    """The config of a fit.

    Attributes:
        values: All settings, resolved.
    """

    values: Namespace

    @property
    def run_folder(self) -> Path:
        """Where the run wrote."""
        return Path(self.values["trainer"]["default_root_dir"])

    @property
    def device(self) -> torch.device:
        """The first device of the trainer's accelerator."""
        require_accelerator(self.values["trainer"]["accelerator"])
        return Fabric(accelerator=self.values["trainer"]["accelerator"], devices=1).device

    def launch(self) -> Fabric:
        """As many processes as the trainer's devices and nodes, this one among them, each with a device of its own.

        Where neither torchrun nor SLURM has started the others, they are started. They talk over gloo, whatever their
        devices are: who waits for another leaves its device alone.

        Raises:
            SettingError: If other numbers have been started.
            ModelError: If a model is to be spread over the devices of all of them.
        """
        asked = {name: self.values["trainer"][name] for name in ("accelerator", "devices", "num_nodes")}
        require_accelerator(asked["accelerator"])
        fabric = Fabric(**asked)
        if isinstance(fabric.strategy, DDPStrategy):
            fabric = Fabric(**asked, strategy=DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE))
        for role in ("sharer", "receiver"):
            ModelSpec(**self.values["model"][role].as_dict()).require_alone(fabric.world_size)
        numbers = f"trainer.devices={asked['devices']} and trainer.num_nodes={asked['num_nodes']}"
        try:
            fabric.launch()
        except ValueError as error:
            raise SettingError(f"{numbers} must be what was started: {reason(error)}") from error
        if TorchElasticEnvironment.detect() and TorchElasticEnvironment().world_size() != fabric.world_size:
            raise SettingError(f"{numbers} must be what torchrun has started, a process for each device of each node.")
        tell_of_signals(getattr(fabric.strategy.launcher, "procs", ()))
        return fabric

    @property
    def quiet(self) -> bool:
        """Whether there is to be no progress bar."""
        return self.values["trainer"]["enable_progress_bar"] is False

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, in receiver tokens."""
        return int(self.values["model"]["max_new_tokens"])

    @property
    def prefills(self) -> PrefillSettings | None:
        """Where prefills are kept."""
        given = self.values["model"]["prefills"]
        return None if given is None else PrefillSettings(**given.as_dict())

    def module(self) -> LCFModule:
        """The LightningModule; no weight is loaded."""
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LCFModule, "model")
        module: LCFModule = parser.instantiate(Namespace(model=self.values["model"]))["model"]
        return module

    def data(self) -> PairDataModule:
        """The data module; no model is loaded and no row read yet.

        Raises:
            SettingError: If the config names none, or one that is not for a pair.
        """
        require_data(self.values["data"])
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        data = parser.instantiate(Namespace(data=self.values["data"]))["data"]
        if not isinstance(data, PairDataModule):
            raise SettingError(
                f"data={type(data).__name__} must be a ContextMismatchDataModule or a SharedContextDataModule."
            )
        return data

    def adapter_folder(self, adapter: str | None, revision: str | None = None) -> Path:
        """``adapter`` as a folder here, fetched at ``revision`` where it is on the hub; or that of the run."""
        return local_folder(adapter or self.run_folder / "adapter", revision)

    def read_adapter(self, folder: Path, data: PairDataModule) -> CacheAdapter:
        """The adapter of a folder, if it belongs to the data; its parts are those that this config may name.

        Raises:
            SettingError: If it needs another kind of data.
            GeometryError: If it belongs to another pair.
        """
        chosen = self.values["model"]["adapter"]
        AdapterSettings(fuser=chosen["fuser"], pooler=chosen["pooler"]).import_parts()
        adapter = CacheAdapter.from_pretrained(folder)
        if isinstance(data, SharedContextDataModule) != (adapter.pooler is None):
            kinds = ("no pooler", "SharedContext") if adapter.pooler is None else ("a pooler", "ContextMismatch")
            raise SettingError(
                f"adapter={str(folder)!r} has {kinds[0]} and needs a {kinds[1]}DataModule, not a {type(data).__name__}."
            )
        adapter.config.require("sharer", geometry_of(data.sharer))
        adapter.config.require("receiver", geometry_of(data.receiver))
        return adapter

    def link(self, adapter: CacheAdapter, data: PairDataModule, device: torch.device) -> Link:
        """The pair, loaded on a device, and the adapter without its closed layers."""
        adapter = without_closed_layers(adapter).to(device)
        return Link(*load_pair(data.sharer, data.receiver, device), adapter, self.prefills)


def config_parser(command: Command, options: type[object] | None = None) -> LightningArgumentParser:
    """A parser of a fit's config, and of a command's options beside it."""
    parser = command.parser()
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A config of fit.")
    if options is not None:
        parser.add_class_arguments(options)
    parser.add_argument("--seed_everything", type=bool | int, default=42, help="Seed of the data.")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(LCFModule, "model")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    add_links(parser)
    return parser


def parse(command: Command, options: type[OptionsT], args: list[str]) -> tuple[OptionsT, FitConfig]:
    """A command's options, and the config that it is run on.

    Raises:
        SettingError: If an argument is wrong.
    """
    values = config_parser(command, options).parse_args(with_bases(args))
    import_named(values["modules"])
    given = {field.name: values.pop(field.name) for field in fields(options)}  # type: ignore[arg-type]
    return options(**given), FitConfig(values)


def require_data(data: object) -> None:
    """Raise a SettingError unless a config names a data module; `params` alone needs none."""
    if data is None:
        raise SettingError("data=null must name a data module, such as ContextMismatchDataModule.")


def require_accelerator(name: object) -> None:
    """Raise a SettingError unless a trainer's accelerator is one of this machine, or no name."""
    here = [kind for kind in AcceleratorRegistry if AcceleratorRegistry[kind]["accelerator"].is_available()]
    known = ["auto", *here, *(["gpu"] if {"cuda", "mps"} & set(here) else [])]
    if isinstance(name, str) and name not in known:
        raise SettingError(f"trainer.accelerator={name!r} is not on this machine; take {' or '.join(known)}.")


def require_limit(limit: int | None) -> None:
    """Raise a SettingError unless ``limit`` is a number of examples, or None for all."""
    if limit is not None and limit < 1:
        raise SettingError(f"limit={limit} must be at least 1, or null for all.")
