"""Tables of `datasets` that are made once: by the process that comes first, for all ranks and all later starts."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lcf_lightning.errors import reason
from lcf_lightning.files import turn

if TYPE_CHECKING:
    import datasets

Make = Callable[[dict[str, list[int]]], dict[str, list[Any]]]
_BATCH = 128  # places that are made at once


def made_once(
    what: str, places: Sequence[int], make: Make, features: Mapping[str, Any], key: str | None, processes: int = 0
) -> datasets.Dataset:
    """The table of what ``make`` makes of ``places``, in their order.

    It is kept in the cache folder of `datasets` (``HF_DATASETS_CACHE``). Whoever comes first makes it; others wait, and
    read it. It is written aside and renamed; one that cannot be read is made again, with a warning.

    Args:
        what: What the progress bar calls it.
        places: What to make rows of.
        make: From ``{"place": places}`` to the columns of as many rows.
        features: The columns, by name, with their type in terms of `datasets`.
        key: What the rows depend on besides their places; null keeps nothing.
        processes: Processes that make it; 0 or 1 make it in this one.
    """
    import datasets

    table = datasets.Dataset.from_dict({"place": list(places)})
    options: dict[str, Any] = {
        "batched": True,
        "batch_size": _BATCH,
        "remove_columns": ["place"],
        "features": datasets.Features(features),
        "desc": what,
    }
    if key is None or not len(table):
        return table.map(make, new_fingerprint=uuid.uuid4().hex, **options)
    name = digest_of(key, hashlib.sha256(np.asarray(places, np.int64).tobytes()).hexdigest())
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lcf_lightning"
    options |= {
        "cache_file_name": str(folder / f"{name}.arrow"),
        "new_fingerprint": name,
        "num_proc": processes if 1 < processes <= len(table) // _BATCH else None,
    }
    with turn(folder / f"{key}.lock"):
        kept = list(folder.glob(f"{name}*.arrow"))
        try:
            return table.map(make, load_from_cache_file=True, **options)
        except (OSError, ValueError) as error:  # ArrowInvalid is one
            if not kept:
                raise
            rank_zero_warn(f"{kept[0]} is damaged ({reason(error)}); made anew.")
            return table.map(make, load_from_cache_file=False, **options)


def digest_of(*parts: Any) -> str:
    """A short digest of JSON-ready values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer makes of a text depends on this: its tables, its special tokens, its chat template."""
    backend = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    versions = tokenizers.__version__, transformers.__version__
    return digest_of(backend, special, tokenizer.chat_template, versions)


@cache
def code_digest(kind: type) -> str | None:
    """Of the files that a class and its bases stand in, and of all of this package that makes tokens of texts.

    A class says nothing of what else it calls. None where there is no file, as of a class written in a notebook.
    """
    files = set(Path(__file__).parent.rglob("*.py"))
    for base in kind.__mro__[:-1]:
        if base.__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
            continue
        try:
            files.add(Path(inspect.getfile(base)))
        except (OSError, TypeError):
            return None
    return digest_of(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files) if file.is_file()))
