"""The models of a channel's sides: those that the adapter names, or others that take their place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, ModelIdentity
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import AdapterFileError, ModelError, SettingError
from lcf_lightning.link import Role, held_alike, spec_of
from lcf_lightning.models.loading import FrozenModel, found_device, geometry_of, load_frozen
from lcf_lightning.models.spec import QUANTIZATIONS, ModelSpec
from lcf_lightning.typed import from_table

Given = str | Path | FrozenModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""Where a model lies, or one that is loaded, with its tokenizer."""


def by_role(sides: str, sharer: Given | None, receiver: Given | None) -> dict[Role, Given | None]:
    """What is given for each side that is wanted; None for the adapter's own model.

    Raises:
        SettingError: If ``sides`` is not ``both``, ``sharer`` or ``receiver``, or a model is given for no side.
    """
    given: dict[Role, Given | None] = {"sharer": sharer, "receiver": receiver}
    if sides not in ("both", *given):
        raise SettingError(f"sides={sides!r} must be both, sharer or receiver.")
    wanted: dict[Role, Given | None] = {role: other for role, other in given.items() if sides in ("both", role)}
    for role in given.keys() - wanted.keys():
        if given[role] is not None:
            raise SettingError(f"{role}= must be left out with sides={sides!r}, which needs no {role}.")
    return wanted


def load_sides(
    config: AdapterConfig,
    given: Mapping[Role, Given | None],
    device: torch.device | str,
    dtype: str | None,
    quantization: str | None,
) -> dict[Role, FrozenModel]:
    """Each side's model, on one device; loaded once where both are the same, and after all else has been checked.

    Args:
        config: Of the adapter.
        given: By side, what takes the place of the adapter's model; None for that model.
        device: ``auto`` for that of a model that is given, if one is loaded, else the accelerator of this machine.
        dtype: Of what is to be loaded; null for that of training.
        quantization: Of what is to be loaded; null for that of training, ``none`` for none.

    Raises:
        SettingError: If something else is given, or a loaded model is on another device.
        ModelError: If a model cannot be read or used, or there is no such dtype.
        GeometryError: If a model is not like the adapter's.
    """
    if quantization not in (None, "none", *QUANTIZATIONS):
        raise SettingError(f"quantization={quantization!r} must be {', '.join(QUANTIZATIONS)}, none, or None.")
    sides: dict[Role, ModelSpec | FrozenModel] = {}
    for role, other in given.items():
        spec = spec_of(getattr(config, role))
        held = {None: spec.quantization, "none": None}.get(quantization, quantization)
        path, revision = (spec.path, spec.revision) if other is None else (str(other), None)
        sides[role] = _loaded(role, other) or ModelSpec(path, revision, dtype or spec.dtype, held)
    for role, side in sides.items():
        try:
            config.require(role, side.geometry if isinstance(side, FrozenModel) else geometry_of(side))
        except ModelError as error:
            elsewhere = f" If the {role} lies elsewhere: Channel.from_pretrained(…, {role}=PATH)."
            raise ModelError(f"{error}{elsewhere if given[role] is None else ''}") from error
    here = _common_device(device, sides)
    loaded = {side: load_frozen(side, here) for side in sides.values() if isinstance(side, ModelSpec)}
    return {role: loaded[side] if isinstance(side, ModelSpec) else side for role, side in sides.items()}


def warn_of_unchecked(
    config: AdapterConfig, given: Mapping[Role, Given | None], models: Mapping[Role, FrozenModel]
) -> None:
    """Say, on the line that called the channel, which given model's weights could not be compared."""
    for role in (role for role, other in given.items() if other is not None):
        model, made_for = models[role], getattr(config, role)
        known = made_for.fingerprint is not None
        if known and held_alike(made_for, model):
            continue
        why = f"not held as in training ({_held(made_for)})" if known else "of unknown fingerprint"
        warnings.warn(
            f"{role} path={model.spec.path!r} ({_held(model.spec)}) is taken for {made_for.path!r}, {why}: its layers, "
            "heads and head size were compared, and no weights.",
            stacklevel=3,
        )


def _held(model: ModelSpec | ModelIdentity) -> str:
    return model.dtype if model.quantization is None else f"{model.dtype}, {model.quantization}"


def _loaded(role: Role, given: Given | None) -> FrozenModel | None:
    """A model that is loaded already; None for a path, and where nothing is given."""
    if given is None or isinstance(given, str | Path):
        return None
    if isinstance(given, FrozenModel):
        return given
    match given:
        case (PreTrainedModel() as model, PreTrainedTokenizerBase() as tokenizer):
            return FrozenModel.of(model, tokenizer)
    raise SettingError(
        f"{role}= of type {type(given).__name__} must be a path or hub id, a FrozenModel, or (model, tokenizer)."
    )


def _common_device(device: torch.device | str, sides: Mapping[Role, ModelSpec | FrozenModel]) -> torch.device:
    """Where both models are to be; a SettingError if that is not here, or a loaded model is elsewhere."""
    loaded = {role: side for role, side in sides.items() if isinstance(side, FrozenModel)}
    asked = next((model.device for model in loaded.values()), device) if device == "auto" else device
    found = found_device(asked)
    for role, model in loaded.items():
        if model.device != found:
            raise SettingError(f"device={str(asked)!r} must be {str(model.device)!r}, where the given {role} is.")
    return found


def prompts_of(adapter: CacheAdapter) -> PromptSettings:
    """How prompts were written in an adapter's training; an AdapterFileError if its metadata cannot be understood."""
    prompts = adapter.config.metadata.get("prompts", {})
    if not prompts:
        return PromptSettings()
    try:
        # Release 0.1.0 knew no `stop`: its adapters answer as they did, to the end.
        return from_table(PromptSettings, {"stop": None} | prompts, "prompts")
    except (TypeError, SettingError) as error:
        raise AdapterFileError(f"metadata.prompts of this adapter cannot be understood: {error!s:.1000}") from error
