"""`ModelSpec`: what a config says of a frozen model, where its files are, and its tokenizer. No weight is loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcf_lightning.errors import ModelError, reason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE = "The  naïve Größe of 1,234.5 % – \n\tdon't! 東京 ﬁ é\u0301 🙂 def f(x):\n    return x\n "
QUANTIZATIONS = ("8bit", "nf4")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")  # of transformers itself: no kernel of the hub
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
ASSETS = Path(__file__).parent.parent / "assets"
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, ImportError, SafetensorError, struct.error)
BUILTIN = {name: ASSETS / name for name in ("tiny-sharer", "tiny-receiver", "tiny-expert")}


@dataclass(frozen=True)
class ModelSpec:
    """Which frozen model to use and how to hold it in memory.

    Attributes:
        path: Hub id (``Qwen/Qwen3-0.6B``), local folder, ``.gguf`` file, or an embedded ``tiny-…``.
        revision: Branch, tag or commit of a hub id; None takes the hub's default branch.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        quantization: ``8bit`` or ``nf4`` (bitsandbytes; needs the extra ``quant``), or None.
        attn_implementation: How attention is computed: ``eager``, ``sdpa``, ``flash_attention_2`` or
            ``flash_attention_3``; None for transformers' own choice. An adapter does not depend on it.
        device_map: For a model that is larger than a card, and for one process: where its parts go, as transformers
            takes it: ``auto``, ``balanced``, ``balanced_low_0``, ``sequential``, or from the names of modules (an empty
            one for all of it) to a device, ``cpu`` or ``disk``. None for all on the device of the process, on which
            prompts and caches are in any case.
    """

    path: str
    revision: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    attn_implementation: str | None = None
    device_map: dict[str, int | str] | str | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype={self.dtype!r} of model {self.path!r} must be one of {', '.join(DTYPES)}.")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ModelError(
                f"quantization={self.quantization!r} of model {self.path!r} must be one of "
                f"{', '.join(QUANTIZATIONS)}, or null."
            )

        attention = self.attn_implementation
        if attention not in (None, *ATTENTIONS):
            raise ModelError(
                f"attn_implementation={attention!r} of model {self.path!r} must be one of {', '.join(ATTENTIONS)}, "
                "or null."
            )
        if attention is not None and attention.startswith("flash") and self.dtype == "float32":
            raise ModelError(
                f"attn_implementation={attention!r} of model {self.path!r} needs dtype bfloat16 or float16."
            )
        self._check_device_map()

    def _check_device_map(self) -> None:
        spread = self.device_map
        if spread is None:
            return
        given = f"device_map={spread!r} of model {self.path!r}"
        if self.is_gguf:
            raise ModelError(f"{given} must be null: a GGUF file is read whole.")
        if isinstance(spread, str) and spread not in DEVICE_MAPS:
            raise ModelError(f"{given} must be one of {', '.join(DEVICE_MAPS)}, a device for each module, or null.")
        if not spread:
            raise ModelError(f"{given} must name a device for each module, or be null.")

    def require_alone(self, processes: int) -> None:
        """Raise a ModelError if a model that is spread over devices would be so in each of several processes."""
        if self.device_map is not None and processes > 1:
            raise ModelError(
                f"device_map={self.device_map!r} of model {self.path!r} must be null with {processes} processes, each "
                "of which would spread it over the same devices; set trainer.devices and trainer.num_nodes to 1."
            )

    @property
    def is_gguf(self) -> bool:
        return self.path.endswith(".gguf")

    def source(self) -> dict[str, Any]:
        """Arguments that tell transformers' ``from_pretrained`` where the files are.

        Raises:
            ModelError: If ``path`` looks like a local path and nothing usable is there.
        """
        path = Path(BUILTIN.get(self.path, self.path)).expanduser()
        if self.revision is not None and path.exists():
            raise ModelError(f"revision={self.revision!r} of model {self.path!r} must be null: that is no hub id.")
        if self.is_gguf:
            missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
            if missing:
                raise ModelError(
                    f"path={self.path!r} needs {' and '.join(missing)}: pip install 'lcf-lightning[gguf]'."
                )
            if not path.is_file():
                raise ModelError(f"path={self.path!r} is not a file; give the path of an existing .gguf file.")
            return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise ModelError(f"path={self.path!r} has no config.json; give a folder saved by transformers.")
            return {"pretrained_model_name_or_path": str(path)}
        if path.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") != 1 or path.exists():
            raise ModelError(
                f"path={self.path!r} is no model folder; give a hub id (owner/name), a folder saved by transformers, "
                f"a .gguf file, or one of {', '.join(BUILTIN)}."
            )
        return {"pretrained_model_name_or_path": self.path, "revision": self.revision}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ModelError: If it cannot be read, or is not one that prompts can be written with.
    """
    return checked_tokenizer(from_pretrained(AutoTokenizer, spec), spec.path)


def checked_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, if prompts can be written with it.

    Raises:
        ModelError: If it is a slow one (spans need character offsets), or has no end of sequence.
    """
    if not tokenizer.is_fast:
        raise ModelError(f"path={path!r} has a slow tokenizer; spans need one that gives character offsets.")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"path={path!r} has a tokenizer without an end-of-sequence token; answers need one.")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what a tokenizer makes of texts, whichever release of its library has read it.

    Of its vocabulary, its special tokens, its chat template, and the tokens of a text with a little of everything.
    """
    special = sorted((token.content, token.special) for token in tokenizer.added_tokens_decoder.values())
    facts = [sorted(tokenizer.get_vocab().items()), special, tokenizer.chat_template, tokenizer(_PROBE)["input_ids"]]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def from_pretrained(auto_class: Any, spec: ModelSpec, **options: Any) -> Any:
    """What a class of transformers reads at ``spec``; no code that comes with it is run.

    Raises:
        ModelError: If it cannot be read.
    """
    source = spec.source()
    try:
        return auto_class.from_pretrained(**source, trust_remote_code=False, **options)
    except _UNREADABLE as error:
        hub = f"is no folder here, and cannot be read from the hub (revision={spec.revision!r})"
        where = hub if "revision" in source else "cannot be read"
        raise ModelError(f"path={spec.path!r} {where}: {reason(error)}") from error
