"""Frozen models from a hub id, a local folder or a GGUF file.

`ModelSpec` is what a config says of a model; `FrozenModel` is what the rest of the package uses.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lcf_lightning.digests import tensor_digest
from lcf_lightning.errors import ModelError, reason
from lcf_lightning.models.families import Family, family_of
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("8bit", "nf4")
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
    """

    path: str
    revision: str | None = None
    dtype: str = "float32"
    quantization: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype={self.dtype!r} of model {self.path!r} must be one of {', '.join(DTYPES)}.")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ModelError(
                f"quantization={self.quantization!r} of model {self.path!r} must be one of "
                f"{', '.join(QUANTIZATIONS)}, or null."
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


@dataclass(frozen=True)
class FrozenModel:
    """A causal LM that never changes, with its tokenizer.

    Frozen means: ``eval()``, no parameter requires a gradient. The same text gives the same cache.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self) -> Any:
        """The text config of transformers."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def family(self) -> Family:
        """How models of this architecture keep their caches."""
        return family_of(self.config)

    @cached_property
    def geometry(self) -> Geometry:
        return self.family.geometry(self.config)

    @cached_property
    def weight_digests(self) -> dict[str, str]:
        """A digest of each weight as it is in memory, by name.

        Found once, since it reads every weight: a second or two for each 10⁹ bytes.
        """
        return {name: tensor_digest(tensor) for name, tensor in self.model.state_dict().items()}

    @property
    def fingerprint(self) -> str:
        """A digest of the weights in their order, whatever transformers calls them."""
        names = {tensor.data_ptr(): name for name, tensor in self.model.state_dict().items()}  # tied weights once
        digests = "".join(self.weight_digests[name] for name in names.values())
        return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokenizer's end of sequence first, then those the model itself may end a turn with."""
        generation = getattr(self.model.generation_config, "eos_token_id", None)
        others = generation if isinstance(generation, list) else [generation]
        end = int(self.tokenizer.eos_token_id)
        return (end, *(int(token) for token in others if token not in (None, end)))


def geometry_of(spec: ModelSpec) -> Geometry:
    """The model's KV geometry, from its config alone: no weight is loaded, no network used for known hub ids.

    Raises:
        ModelError: If the config cannot be read.
        GeometryError: If it describes no decoder with uniform KV layers.
    """
    source = spec.source()
    if source["pretrained_model_name_or_path"] in KNOWN_GEOMETRIES:
        return KNOWN_GEOMETRIES[source["pretrained_model_name_or_path"]]
    config = _from_pretrained(AutoConfig, spec).get_text_config(decoder=True)
    return family_of(config).geometry(config)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ModelError: If it cannot be read, or is a slow one (spans need character offsets).
    """
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, spec)
    if not tokenizer.is_fast:
        raise ModelError(f"path={spec.path!r} has a slow tokenizer; spans need one that gives character offsets.")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"path={spec.path!r} has a tokenizer without an end-of-sequence token; answers need one.")
    return tokenizer


def load_frozen(spec: ModelSpec, device: torch.device | str = "cpu") -> FrozenModel:
    """Load and freeze a model on ``device``.

    Raises:
        ModelError: If the model cannot be read or bitsandbytes is asked for and missing.
    """
    options: dict[str, Any] = {"dtype": DTYPES[spec.dtype]}
    if spec.quantization is not None:
        options |= {"quantization_config": _quantization_config(spec), "device_map": {"": str(device)}}
    model = _from_pretrained(AutoModelForCausalLM, spec, **options)
    if spec.quantization is None:
        model.to(device)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack nf4 weights at the first prefill, for a kernel through which no gradient flows.
            module.support_avx512bf16_for_cpu = False
    # What a model's makers like for chats is no setting of ours: decoding is greedy unless it is asked for otherwise.
    model.generation_config = GenerationConfig(eos_token_id=getattr(model.generation_config, "eos_token_id", None))
    model.eval().requires_grad_(False)
    return FrozenModel(spec, model, load_tokenizer(spec))


def _quantization_config(spec: ModelSpec) -> Any:
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise ModelError(
            f"quantization={spec.quantization!r} needs bitsandbytes, accelerate: pip install 'lcf-lightning[quant]'."
        )
    from transformers import BitsAndBytesConfig

    # One line for every linear layer of every forward: that float32 is cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[spec.dtype])


def _from_pretrained(auto_class: Any, spec: ModelSpec, **options: Any) -> Any:
    source = spec.source()
    try:
        return auto_class.from_pretrained(**source, **options)
    except _UNREADABLE as error:
        raise ModelError(f"path={spec.path!r} (revision={spec.revision!r}) cannot be read: {reason(error)}") from error
