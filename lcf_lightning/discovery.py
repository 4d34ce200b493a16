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
        _import(name, f"modules={name!r}")


def import_home(path: str, named_by: str) -> None:
    """Import the module of a class path; nothing where ``path`` is no class path but a short name.

    For what a user's own config or command says, never for what has travelled.

    Args:
        path: The class path.
        named_by: The setting and its value, as the error names it.

    Raises:
        SettingError: If there is no such module.
    """
    module = path.rpartition(".")[0]
    if module:
        _import(module, named_by)


def _import(module: str, named_by: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        raise SettingError(f"{named_by} cannot be imported: {reason(error)}.") from error


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """Every class below ``base`` that has been imported and can be made, in the order of definition, parents first."""
    for kind in base.__subclasses__():
        if not inspect.isabstract(kind):
            yield kind
        yield from subclasses(kind)


def class_path(kind: type) -> str:
    """The name by which a config can name a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def in_package(kind: type) -> bool:
    """Whether a class is of this package, and not a user's own."""
    return kind.__module__.startswith("lcf_lightning.")
