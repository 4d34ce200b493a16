"""What a command says of itself, and how the arguments of one that needs no Trainer become a dataclass."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lcf_lightning.cli.parser import LCFParser
from lcf_lightning.errors import SettingError

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
        run: Runs it with its arguments.
        again: What becomes of a run that a fault has ended.
    """

    name: str
    summary: str
    options: tuple[tuple[str, str], ...]
    example: str
    run: Callable[[list[str]], object]
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
        return LCFParser(prog=f"{PROGRAM} {self.name}", usage=self.usage, description=self.description, **settings)

    def options_of(self, kind: type[OptionsT], args: list[str]) -> OptionsT:
        """The options of a command that reads no config."""
        parser = self.parser()
        parser.add_class_arguments(kind)
        options: OptionsT = kind(**parser.parse_args(args).as_dict())
        return options


def new_folder(output: str | Path) -> Path:
    """``output`` as the folder that a command is to write; a SettingError if it is there already."""
    if Path(output).exists():
        raise SettingError(f"output={str(output)!r} exists; name a folder that does not.")
    return Path(output)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Where to write the new folder ``output``, which has its name once all of it is there: a kill leaves none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as aside:
        folder = Path(aside) / output.name
        yield folder
        os.rename(folder, output)


def overview(commands: dict[str, Command]) -> str:
    """Every command with a line each."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [f"usage: {PROGRAM} COMMAND [options]", "", "Two frozen language models that talk through their KV caches.", "",
         "commands:", *lines, "", f"{PROGRAM} COMMAND --help tells more of each."]
    )  # fmt: skip
