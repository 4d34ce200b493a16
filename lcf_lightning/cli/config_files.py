"""Config files that extend others: ``base: other.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lcf_lightning.errors import SettingError


def with_bases(args: Sequence[str]) -> list[str]:
    """The arguments with, before every ``--config F``, the config files that F extends."""
    expanded: list[str] = []
    for argument, following in zip(args, [*args, ""][1:], strict=True):
        name, _, value = argument.partition("=")
        if name in ("-c", "--config"):
            for base in bases(Path(value or following)):
                expanded += ["--config", str(base)]
        expanded.append(argument)
    return expanded


def bases(file: Path) -> list[Path]:
    """The chain of files that ``file`` extends, the first to be read first."""
    chain: list[Path] = []
    while file.is_file():
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # it may be written in another encoding
            raise SettingError(f"config={str(file)!r} is not valid YAML: {' '.join(str(error).split())}") from error
        base = content.get("base") if isinstance(content, dict) else None
        if base is None:
            break
        if not isinstance(base, str):
            raise SettingError(f"base={base!r:.80} must name another config file.")
        file = file.parent / base
        if file in chain or not file.is_file():
            raise SettingError(f"base={base!r} must name another config file in {file.parent.absolute()}.")
        chain.insert(0, file)
    return chain
