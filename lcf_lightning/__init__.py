"""Two frozen language models that talk through their KV caches (Latent Cache Flow, arXiv 2605.22863)."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lcf_lightning.errors import missing_extra

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {name.name: str(node.module) for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Imports what is asked for: torch takes seconds, and the command line must know Ctrl-C before."""
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if sentence := missing_extra(error):
                raise ModuleNotFoundError(sentence, name=error.name) from error
            raise
    if find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
