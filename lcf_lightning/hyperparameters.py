"""Settings as loggers compare them: a name and a plain value each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, as ``adapter/d``: what dataclasses and mappings hold by its own name, lists and objects as text.

    So they can be kept in a checkpoint, which is read without unpickling, and are none of `LCFModule`'s arguments but
    those that are plain.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            flat |= hyperparameters({f"{name}/{inner}": value[inner] for inner in value})
        else:
            flat[name] = value if value is None or isinstance(value, bool | int | float | str) else str(value)
    return flat
