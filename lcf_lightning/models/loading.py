"""`FrozenModel`: a causal LM from a hub id, a local folder or a GGUF file, as the rest of the package uses it."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lcf_lightning.digests import tensor_digest
from lcf_lightning.errors import ModelError, SettingError, reason
from lcf_lightning.models.families import Family, family_of
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry
from lcf_lightning.models.spec import (
    DTYPES,
    ModelSpec,
    checked_tokenizer,
    from_pretrained,
    load_tokenizer,
    tokenizer_fingerprint,
)

_LOADED_IN = {"8bit": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""By quantization, what transformers sets on a model that has it."""


@dataclass(frozen=True)
class FrozenModel:
    """A causal LM that never changes, with its tokenizer.

    Frozen means: ``eval()``, no parameter requires a gradient. The same text gives the same cache.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> FrozenModel:
        """A model of transformers that is loaded already, on the device and in the dtype that it has.

        It is frozen in place, and its ``generation_config`` keeps nothing but what ends a sequence.

        Raises:
            ModelError: If it generates no text, is held in another dtype than a `ModelSpec` can be, or its tokenizer is
                not one that prompts can be written with.
        """
        path = str(model.name_or_path or type(model).__name__)
        if not model.can_generate():
            raise ModelError(f"path={path!r} is a {type(model).__name__}, which generates no text; give a causal LM.")
        quantization = next((name for name, mark in _LOADED_IN.items() if getattr(model, mark, False)), None)
        spec = ModelSpec(path, None, str(model.dtype).removeprefix("torch."), quantization)
        return _frozen(spec, model, checked_tokenizer(tokenizer, path))

    @property
    def device(self) -> torch.device:
        """Where it reads prompts, and where what it remembers of them is kept."""
        places = set(_spread(self.model))
        if len(places) < 2 and "disk" not in places:
            return self.model.device
        return torch.device(next(iter(place for place in _spread(self.model) if place not in ("cpu", "disk")), "cpu"))

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
        return {name: _digest_of(self.model, name, tensor) for name, tensor in self.model.state_dict().items()}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights, and of what the tokenizer makes of texts."""
        both = self.weights_fingerprint + tokenizer_fingerprint(self.tokenizer)
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    @cached_property
    def weights_fingerprint(self) -> str:
        """A digest of the weights in their order, whatever transformers calls them; what release 0.1.0 knew of them."""
        weights, tied = self.model.state_dict(), getattr(self.model, "all_tied_weights_keys", {})
        # Tied weights once. Those that are offloaded are nowhere, and known by name.
        names = {weights[tied.get(name, name)].data_ptr() or tied.get(name, name): name for name in weights}
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
    config = from_pretrained(AutoConfig, spec).get_text_config(decoder=True)
    return family_of(config).geometry(config)


def load_frozen(spec: ModelSpec, device: torch.device | str = "cpu") -> FrozenModel:
    """Load and freeze a model on ``device``.

    Raises:
        ModelError: If the model cannot be read, a package that it needs is missing, or it is not to read on ``device``.
    """
    options: dict[str, Any] = {"dtype": DTYPES[spec.dtype], "attn_implementation": spec.attn_implementation}
    if spec.quantization is not None:
        options |= {"quantization_config": _quantization_config(spec), "device_map": {"": str(device)}}
    if spec.device_map is not None:
        _require_packages(f"device_map={spec.device_map!r}", "accelerate")
        options["device_map"] = spec.device_map
    with _bar_for_terminals():
        model = from_pretrained(AutoModelForCausalLM, spec, **options)
    if "device_map" not in options:
        model.to(device)
    frozen = _frozen(spec, model, load_tokenizer(spec))
    if spec.device_map is not None and frozen.device != (here := torch.empty(0, device=device).device):
        raise ModelError(
            f"device_map={spec.device_map!r} of model {spec.path!r} begins on {frozen.device}; it must begin on "
            f"{here}, where prompts, caches and the adapter are."
        )
    return frozen


@contextmanager
def _bar_for_terminals() -> Iterator[None]:
    """Inside, transformers draws its bar of the weights that it reads on a terminal alone, and in no log."""
    if not transformers_logging.is_progress_bar_enabled() or getattr(sys.stderr, "isatty", bool)():
        yield
        return
    show_weight_bars(False)
    try:
        yield
    finally:
        show_weight_bars(True)


def show_weight_bars(shown: bool) -> None:
    """Switch transformers' bars; those of the hub's downloads, which it switches too, stay as they are."""
    downloads = not are_progress_bars_disabled()
    bars = transformers_logging
    switch: Callable[[], None] = bars.enable_progress_bar if shown else bars.disable_progress_bar
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the environment decides on those of the hub
        switch()
        (enable_progress_bars if downloads else disable_progress_bars)()


def found_device(device: torch.device | str) -> torch.device:
    """A device of this machine; for ``auto`` its accelerator, or the CPU where there is none.

    Raises:
        SettingError: If there is no such device here.
    """
    if device == "auto":
        device = _accelerator()
    try:
        return torch.empty(0, device=device).device  # torch.device() itself takes the name of any
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        here = dict.fromkeys(("auto", "cpu", _accelerator()))
        listed = isinstance(error, NotImplementedError) or "expected one of" in str(error).lower()
        why = "." if listed else f": {reason(error)}"  # no list of all that torch has a name for
        raise SettingError(
            f"device={str(device)!r} is none that can be used here; take {' or '.join(here)}{why}"
        ) from error


def _accelerator() -> str:
    """What this machine computes on: ``cuda``, say, or ``cpu`` where it has nothing else."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def _frozen(spec: ModelSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> FrozenModel:
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack nf4 weights at the first prefill, for a kernel through which no gradient flows.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    # What a model's makers like for chats is no setting of ours: decoding is greedy unless it is asked for otherwise.
    model.generation_config = GenerationConfig(eos_token_id=getattr(model.generation_config, "eos_token_id", None))
    model.eval().requires_grad_(False)
    return FrozenModel(spec, model, tokenizer)


def _spread(model: PreTrainedModel) -> list[Any]:
    """The devices, ``cpu`` and ``disk`` that transformers has put parts of a model on; nothing where nobody asked."""
    return list(getattr(model, "hf_device_map", {}).values())


def _digest_of(model: PreTrainedModel, name: str, tensor: Tensor) -> str:
    """A weight's digest, wherever it is; one that is offloaded is brought here for it, with its module's others."""
    if tensor.device.type != "meta":
        return tensor_digest(tensor)
    from accelerate.utils import align_module_device

    module, _, weight = name.rpartition(".")
    owner = model.get_submodule(module)
    with align_module_device(owner, torch.device("cpu")):
        return tensor_digest(getattr(owner, weight))


def _require_packages(asked: str, *packages: str) -> None:
    if any(find_spec(name) is None for name in packages):
        raise ModelError(f"{asked} needs {', '.join(packages)}: pip install 'lcf-lightning[quant]'.")


def _quantization_config(spec: ModelSpec) -> Any:
    _require_packages(f"quantization={spec.quantization!r}", "bitsandbytes", "accelerate")
    from transformers import BitsAndBytesConfig

    # One line for every linear layer of every forward: that float32 is cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[spec.dtype])
