"""A fuser as Cache-to-Cache saves it (C2C, arXiv 2510.03215; ``nics-efc/C2C_Fuser``), as parameters of our `C2CFuser`.

A pair's folder holds ``config.json``, the recipe of its training, and ``final/``: for every projector its settings
(``projector_0.json``) and its weights (``projector_0.pt``), and ``projector_config.json``, which layer reads which.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import LAYER_MAPS, AdapterConfig, AdapterSettings, ModelIdentity
from lcf_lightning.errors import AdapterFileError, reason

RECIPE, LAYERS = "config.json", "projector_config.json"
_LINEAR = {"in": "down", "proj_out": "update", "scalar_head": "weight"}  # with a bias
_BLOCKS = {"mlp1": "block", "proj_mlp2": "update_block", "scalar_mlp2": "weight_block"}
_FFN = {"w1": "up", "w2": "down"}
_DROPPED = {"gate_temperature"}  # of training
_DEFAULTS = {
    "hidden_dim": 1024, "intermediate_dim": 1024, "num_layers": 3, "dropout": 0.1, "source_num_heads": 1,
    "target_num_heads": 1,
}  # fmt: skip
"""What a projector's ``init_args`` leave out."""


@dataclass(frozen=True)
class Recipe:
    """What C2C's recipe says of a pair.

    Attributes:
        sharer: Hub id or path of the model whose cache is read (``teacher_model``).
        receiver: Of the model whose cache is edited (``base_model``).
        aligned: Whether the sharer reads its own tokens of the text, and not the receiver's (``is_do_alignment``).
        alignment: ``first`` or ``longest``.
    """

    sharer: str
    receiver: str
    aligned: bool
    alignment: str


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a pair's folder.

    Raises:
        AdapterFileError: If it is missing or not understood.
    """
    model: Any = _read(folder / RECIPE).get("model")
    try:
        sharer, receiver = model["teacher_model"], model["base_model"]
        aligned, alignment = model.get("is_do_alignment", False), model.get("alignment_strategy", "first")
    except (TypeError, KeyError, AttributeError) as error:
        raise AdapterFileError(f"{RECIPE} of {str(folder)!r} does not name base_model and teacher_model.") from error
    if not isinstance(sharer, str) or not isinstance(receiver, str):
        raise AdapterFileError(f"{RECIPE} of {str(folder)!r} must name one base_model and one teacher_model.")
    return Recipe(sharer, receiver, bool(aligned), str(alignment))


def read_fuser(folder: Path, sharer: ModelIdentity, receiver: ModelIdentity, metadata: dict[str, Any]) -> CacheAdapter:
    """The adapter that edits as the fuser in ``folder`` does, in the dtype of its files.

    Args:
        folder: What holds ``projector_config.json``.
        sharer: The model whose cache is read.
        receiver: The model whose cache is edited.
        metadata: What travels with the adapter.

    Raises:
        AdapterFileError: If a file is missing, damaged or no fuser of these two models, or our `C2CFuser` does not
            compute what it does.
    """
    used = _layers(folder)
    arguments = [_arguments(folder, projector) for _, projector in used.values()]
    if any(other != arguments[0] for other in arguments):
        raise AdapterFileError(f"the projectors of {str(folder)!r} differ in their init_args; all must be alike.")
    _require_models(arguments[0], sharer, receiver)
    settings = AdapterSettings(
        fuser="c2c",
        pooler=None,
        d=arguments[0]["hidden_dim"],
        layers=None if len(used) == receiver.geometry.layers else tuple(used),
        layer_map=_layer_map({layer: read for layer, (read, _) in used.items()}, sharer, receiver),
        gate_init=0.0,
        gate_noise="gumbel",
        unrotate_keys=False,
        dropout=arguments[0]["dropout"],
    )
    tensors = _stacked(_weights(folder, projector) for _, projector in used.values())
    with torch.device("meta"):
        adapter = CacheAdapter(AdapterConfig(sharer, receiver, settings, metadata))
    try:
        adapter.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise AdapterFileError(f"the projectors of {str(folder)!r} are no C2C fuser: {error}") from error
    return adapter.eval()


def _layers(folder: Path) -> dict[int, tuple[int, int]]:
    """For every edited receiver layer, ascending, the sharer layer that it reads and its projector."""
    content = _read(folder / LAYERS)
    try:
        (targets,) = content.values()
        (layers,) = targets.values()
        read = {int(layer): tuple(map(int, *reads)) for layer, reads in layers.items()}  # one (layer, projector) each
        used = {layer: (source, projector) for layer, (source, projector) in sorted(read.items())}
    except (AttributeError, TypeError, ValueError) as error:
        raise AdapterFileError(
            f"{LAYERS} of {str(folder)!r} must give each layer of one receiver one layer of one sharer and a projector."
        ) from error
    if not used:
        raise AdapterFileError(f"{LAYERS} of {str(folder)!r} names no layer.")
    return used


def _arguments(folder: Path, projector: int) -> dict[str, Any]:
    """The settings of a projector, if our fuser computes what it does."""
    file = folder / f"projector_{projector}.json"
    content = _read(file)
    kind, arguments = content.get("class"), content.get("init_args")
    if kind != "C2CProjector" or not isinstance(arguments, dict):
        raise AdapterFileError(f"{str(file)!r}: class={kind!r} must be 'C2CProjector', with init_args.")
    arguments = {**_DEFAULTS, **arguments}
    for name, default in _DEFAULTS.items():
        number = arguments[name]
        if isinstance(number, bool) or not isinstance(number, type(default)) or number < 0:
            raise AdapterFileError(f"{str(file)!r}: {name}={number!r} must be a number as {default} is.")
    for name, value in {"intermediate_dim": arguments["hidden_dim"], "num_layers": 3}.items():
        if arguments[name] != value:
            raise AdapterFileError(f"{str(file)!r}: {name}={arguments[name]!r} must be {value}, as in our C2C fuser.")
    return arguments


def _require_models(arguments: dict[str, Any], sharer: ModelIdentity, receiver: ModelIdentity) -> None:
    """Raise an AdapterFileError unless a projector has the heads of both models."""
    for side, role, model in (("source", "sharer", sharer), ("target", "receiver", receiver)):
        found = (arguments[f"{side}_num_heads"], arguments.get(f"{side}_dim"))
        expected = (model.geometry.kv_heads, model.geometry.head_dim)
        if found != expected:
            raise AdapterFileError(
                f"{side}_num_heads and {side}_dim of the projectors are {found}; {role} {model.path!r} has {expected}."
            )


def _layer_map(read: dict[int, int], sharer: ModelIdentity, receiver: ModelIdentity) -> str:
    """The name of the map by which these receiver layers read these sharer layers."""
    counts = (sharer.geometry.layers, receiver.geometry.layers)
    inside = all(layer < counts[1] for layer in read)
    for name, find in LAYER_MAPS.items():
        if inside and all(find(layer, *counts) == source for layer, source in read.items()):
            return name
    raise AdapterFileError(
        f"{LAYERS} is none of the layer maps {', '.join(LAYER_MAPS)} of {counts[0]} sharer layers and {counts[1]} "
        f"receiver layers: receiver layers read {read}."
    )


def _weights(folder: Path, projector: int) -> dict[str, Tensor]:
    """A projector's weights; nothing but tensors is unpickled."""
    file = folder / f"projector_{projector}.pt"
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise AdapterFileError(f"{str(file)!r} cannot be read as weights: {reason(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise AdapterFileError(f"{str(file)!r} must hold the weights of a projector by name.")
    return {name: tensor for name, tensor in weights.items() if name not in _DROPPED}


def _stacked(projectors: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of an adapter, stacked over layers, from each layer's projector."""
    try:
        layers = [dict(_renamed(weights)) for weights in projectors]
        names = {name for layer in layers for name in layer}
        tensors = {name: torch.stack([layer[name] for layer in layers]) for name in sorted(names)}
        logits = [tensors.pop(f"gates.{side}") for side in ("keys", "values")]
    except (KeyError, RuntimeError) as error:
        raise AdapterFileError(f"the projectors do not hold the same weights: {reason(error)}") from error
    return {**tensors, "gates.logits": torch.stack(logits, dim=1)}


def _renamed(weights: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """A projector's weights under the names, and in the shapes, that they have in an adapter of one layer."""
    for name, tensor in weights.items():
        side, _, rest = name.partition("_")
        target = _NAMES.get(rest)
        if side not in ("key", "value") or target is None:
            raise AdapterFileError(f"a projector holds {name!r}, which no C2CProjector has.")
        part, change = target
        yield part.format(side=f"{side}s"), change(tensor)


def _names() -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """For each weight of one side of a projector, its name in an adapter and its change of shape."""
    names: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {"gate_logit": ("gates.{side}", _number)}
    for theirs, ours in _LINEAR.items():
        names[f"{theirs}.weight"] = (f"fuser.{{side}}.{ours}.weight", Tensor.t)
        names[f"{theirs}.bias"] = (f"fuser.{{side}}.{ours}.bias", _row)
    for theirs, ours in _BLOCKS.items():
        names[f"{theirs}.blocks.0.norm.weight"] = (f"fuser.{{side}}.{ours}.norm", _row)
        for their_map, our_map in _FFN.items():
            names[f"{theirs}.blocks.0.{their_map}.weight"] = (f"fuser.{{side}}.{ours}.{our_map}.weight", Tensor.t)
    return names


def _row(vector: Tensor) -> Tensor:
    return vector[None]


def _number(scalar: Tensor) -> Tensor:
    return scalar.reshape(())


_NAMES = _names()


def _read(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise AdapterFileError(f"{str(file)!r} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise AdapterFileError(f"{str(file)!r} must hold a JSON object.")
    return content
