"""Data sources, one file a data set; what stands in this folder is found, and is imported from here by its name."""

from typing import Any

from lcf_lightning.data.sources.source import RowSource, Source
from lcf_lightning.discovery import import_modules, in_package, subclasses

import_modules(__name__)

__all__ = ["RowSource", "Source", "known_sources"]


def known_sources() -> list[str]:
    """Names of the sources of this package."""
    return sorted(_inside())


def _inside() -> dict[str, type[Source]]:
    return {kind.__name__: kind for kind in subclasses(Source) if in_package(kind)}


def __getattr__(name: str) -> Any:
    if name in (inside := _inside()):
        return inside[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
