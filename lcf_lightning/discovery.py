"""Parts that are found by standing in a folder: sources, poolers, fusers, arms, model families."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TypeVar

from lcf_lightning.errors import SettingError, reason

T = TypeVar("T")


def import_modules(package: str) -> None:
    """Import every module of a package, in the order of their names, so that the classes in them are known."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        import_module(f"{package}.{module.name}")


def import_named(modules: str | Sequence[str]) -> None:
    """Import modules by their names, one or several.

    Raises:
        SettingError: If one cannot be imported.
    """
    for name in [modules] if isinstance(modules, str) else modules:
        try:
            import_module(name)
        except ImportError as error:
            raise SettingError(f"modules={name!r} cannot be imported: {reason(error)}.") from error


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """Every class below ``base`` that has been imported and can be made, in the order of definition, parents first."""
    for kind in base.__subclasses__():
        if not inspect.isabstract(kind):
            yield kind
        yield from subclasses(kind)
