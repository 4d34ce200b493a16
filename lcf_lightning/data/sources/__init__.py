"""Data sources, one file a data set; what stands in this folder is found, and is imported from here by its name."""

from typing import Any

from lcf_lightning.data.sources.source import RowSource, Source
from lcf_lightning.discovery import import_modules, subclasses

import_modules(__name__)

__all__ = ["RowSource", "Source", "known_sources"]


def known_sources() -> list[str]:
    """Names of the sources that have been imported."""
    return sorted(source.__name__ for source in subclasses(Source))


def __getattr__(name: str) -> Any:
    for source in subclasses(Source):
        if source.__name__ == name and source.__module__.startswith(f"{__name__}."):
            return source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
