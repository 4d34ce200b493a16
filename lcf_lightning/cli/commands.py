"""What every command says of itself. Nothing that takes a second is imported here, or a help would take it too."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lcf_lightning.cli.parser import LCFParser

OptionsT = TypeVar("OptionsT")
PROGRAM = "lcf-lightning"


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        name: Its name.
        summary: What it does, in one sentence without an end.
        options: Its five most used options (fewer where it has fewer), each with what it is.
        example: Arguments of an example.
        again: What becomes of a run that a fault has ended.
    """

    name: str
    summary: str
    options: tuple[tuple[str, str], ...]
    example: str
    again: str = "the same command begins anew"

    @property
    def usage(self) -> str:
        """One line."""
        return f"{PROGRAM} {self.name} {self.options[0][0]} [options]"

    @property
    def configured(self) -> bool:
        """Whether it takes a fit's config, whose settings fill many screens."""
        return self.options[0][0].startswith("--config")

    @property
    def help(self) -> str:
        """What ``--help`` says where the command takes a config: a screen."""
        return f"usage: {self.usage}\n\n{self.description}\n\nEvery setting, the Trainer's too: --help-all\n"

    @property
    def description(self) -> str:
        """What ``--help`` and ``--help-all`` open with."""
        width = max(len(option) for option, _ in self.options)
        options = "\n".join(f"  {option:<{width}}  {meaning}" for option, meaning in self.options)
        return f"{self.summary}.\n\nMost used:\n{options}\n\nExample:\n  {PROGRAM} {self.name} {self.example}"

    def line(self, args: list[str]) -> str:
        """The command line, as a report quotes it."""
        return f"{PROGRAM} {self.name} {shlex.join(args)}"

    def parser(self, **settings: Any) -> LCFParser:
        """A parser whose help opens with what the command does."""
        from lcf_lightning.cli.parser import LCFParser

        return LCFParser(prog=f"{PROGRAM} {self.name}", usage=self.usage, description=self.description, **settings)

    def options_of(self, kind: type[OptionsT], args: list[str]) -> OptionsT:
        """The options of a command that reads no config."""
        parser = self.parser()
        parser.add_class_arguments(kind)
        options: OptionsT = kind(**parser.parse_args(args).as_dict())
        return options


def _lightning(name: str, summary: str, *more: tuple[str, str], again: str = Command.again) -> Command:
    """A command that Lightning's Trainer runs."""
    config = ("--config FILE", "the config; every setting of it can be given as --setting VALUE")
    folder = ("--trainer.default_root_dir FOLDER", "the run folder, which holds all that a run writes")
    example = "--config configs/quickstart.yaml"
    return Command(name, summary, (config, folder, *more), example, again)


_CHECKPOINT = ("--ckpt_path FILE", "another checkpoint than the run's last")
_QUIET = ("--trainer.enable_progress_bar false", "no progress bar")
LIGHTNING = {
    command.name: command
    for command in (
        _lightning(
            "fit",
            "Trains the adapter between two frozen models, and answers the test split",
            ("--ckpt_path last", "begin, or continue"),
            ("--trainer.max_steps N", "optimizer steps"),
            ("--print_config", "show every setting, and end"),
            again="the same command with --ckpt_path last continues from the last checkpoint",
        ),
        _lightning(
            "validate",
            "Answers the validation split with a run's adapter",
            _CHECKPOINT,
            ("--trainer.limit_val_batches N", "only so many batches"),
            _QUIET,
        ),
        _lightning(
            "test",
            "Answers the test split with a run's adapter",
            _CHECKPOINT,
            ("--trainer.limit_test_batches N", "only so many batches"),
            _QUIET,
        ),
        _lightning(
            "predict",
            "Writes the message arm's answers to the test split as JSON lines",
            _CHECKPOINT,
            ("--trainer.limit_predict_batches N", "only so many batches"),
            _QUIET,
        ),
    )
}
"""Those of Lightning's command line."""

COMMANDS = LIGHTNING | {
    command.name: command
    for command in (
        Command(
            name="evaluate",
            summary="Answers the test split under every arm, with controls and latencies, and writes a report",
            options=(
                ("--config FILE", "the config of the run"),
                ("--arms [ARM,…]", "arms to run: names, t2t_N, class paths of your own (default: all that apply)"),
                ("--adapter FOLDER", "another adapter than the run's, or its id on the hub"),
                ("--limit N", "a seeded sample of N examples, from every benchmark in proportion"),
                ("--repeats N", "measurements of each arm's latency (default: 10; 0 for none)"),
            ),
            example="--config configs/quickstart.yaml",
            again="the same command goes on where it stopped",
        ),
        Command(
            name="compare",
            summary="Says which of two evaluations is better, question by question, "
            "or what several seeds have in common",
            options=(
                ("FIRST SECOND", "folders of two evaluations; is the first better?"),
                ("--arm ARM", "the arm to compare (default: message)"),
                ("--seeds", "the folders, two or more, are evaluations under several seeds: mean, each, interval"),
                ("--json", "JSON instead of a table"),
            ),
            example="runs/quickstart_shared_c2c/evaluation runs/quickstart_shared/evaluation",
        ),
        Command(
            name="prune",
            summary="Writes a smaller adapter that keeps the layers that matter on the validation split",
            options=(
                ("--config FILE", "the config of the run"),
                ("--keep K", "how many layers to keep, at most"),
                ("--adapter FOLDER", "another adapter than the run's, or its id on the hub"),
                ("--output FOLDER", "folder to write (default: ADAPTER_pruned_K)"),
                ("--limit N", "a seeded sample of N examples, from every benchmark in proportion"),
            ),
            example="--config configs/quickstart_shared.yaml --keep 2",
        ),
        Command(
            name="export",
            summary="Writes the adapter of a checkpoint as a folder with its model card, and uploads it where asked to",
            options=(
                ("--checkpoint FILE", "a checkpoint that fit wrote"),
                ("--output FOLDER", "folder to write"),
                ("--dtype bf16", "half the bytes (default: fp32)"),
                ("--push_to_hub OWNER/NAME", "upload it too"),
                ("--modules MODULE", "the module, or [modules], that define its parts, where they are your own"),
            ),
            example="--checkpoint runs/quickstart/checkpoints/last.ckpt --output runs/quickstart/bf16 --dtype bf16",
        ),
        Command(
            name="import-c2c",
            summary="Writes a released Cache-to-Cache fuser as an adapter folder",
            options=(
                ("SOURCE", "a folder of C2C's checkpoints, or its id on the hub"),
                ("--output FOLDER", "folder to write"),
                ("--pair NAME", "which folder of the source, where it holds several"),
                ("--sharer PATH", "the model whose cache is read (default: the recipe's teacher_model)"),
                ("--receiver PATH", "the model whose cache is edited (default: the recipe's base_model)"),
            ),
            example="nics-efc/C2C_Fuser --pair qwen3_0.6b+qwen2.5_0.5b_Fuser --output runs/c2c_qwen",
        ),
        Command(
            name="params",
            summary="Counts the adapter's parameters, without loading a weight or a data set",
            options=(
                ("--config FILE", "a config of fit"),
                ("--model.adapter.d N", "the bottleneck's width"),
                ("--model.adapter.layers [N,…]", "receiver layers to edit"),
                ("--model.adapter.pooler NAME", "span, prefix, carry, null, or your own"),
                ("--json", "JSON instead of a table"),
            ),
            example="--config configs/qwen_openhermes_lcf128.yaml",
        ),
        Command(
            name="cache",
            summary="Computes and keeps the prefills of a config's texts, so that fits need make none",
            options=(
                ("--config FILE", "a config of fit"),
                ("--model.prefills.folder FOLDER", "where they are kept"),
                ("--model.prefills.dtype float16", "half the bytes"),
                ("--splits [train,validation,test]", "which splits to read"),
                ("--limit N", "a seeded sample of N examples of each, from every benchmark in proportion"),
            ),
            example="--config configs/quickstart.yaml --model.prefills.folder prefills",
            again="the same command goes on where it stopped",
        ),
    )
}
"""All commands."""


def overview() -> str:
    """Every command with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [f"usage: {PROGRAM} COMMAND [options]", "", "Two frozen language models that talk through their KV caches.", "",
         "commands:", *lines, "", f"{PROGRAM} COMMAND --help tells more of each."]
    )  # fmt: skip


def chosen(args: Sequence[str]) -> tuple[str, list[str]]:
    """The command to run, and its arguments.

    Where a text is all that is asked for, it is printed, and the process ends; where there is no such command, it ends
    with one sentence and exit code 2.
    """
    name, rest = (args[0], list(args[1:])) if args else ("--help", [])
    said = None
    if name in ("-h", "--help"):
        said = f"{overview()}\n"
    elif name == "--version":
        said = f"lcf-lightning {version('lcf-lightning')}\n"
    elif name in COMMANDS and COMMANDS[name].configured and {"-h", "--help"}.intersection(rest):
        said = COMMANDS[name].help
    if said is not None:
        sys.stdout.write(said)
        raise SystemExit(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {close[0]}?" if close else "."
        sys.stderr.write(f"error: command {name!r} must be one of {', '.join(COMMANDS)}{meant}\n")
        raise SystemExit(2)
    return name, rest
