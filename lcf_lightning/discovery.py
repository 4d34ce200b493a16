"""Parts that are found by standing in a folder: sources, poolers, fusers, arms, model families."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module


def import_modules(package: str) -> None:
    """Import every module of a package, so that the classes in them are known; in the order of their names."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        import_module(f"{package}.{module.name}")
