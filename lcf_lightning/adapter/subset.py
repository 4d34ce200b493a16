"""A smaller adapter: only some of the layers, and nothing of the others (LCF, arXiv 2605.22863, pruning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.errors import SettingError


def open_layers(adapter: CacheAdapter) -> tuple[int, ...]:
    """The receiver layers that the hard gates of evaluation edit: those whose key or value logit is above 0."""
    return tuple(adapter.config.receiver_layers[place] for place in adapter.gates.open.tolist())


def without_closed_layers(adapter: CacheAdapter) -> CacheAdapter:
    """The same edits from fewer parameters, for whoever trains no more; ``adapter`` itself if all or none are open."""
    layers = open_layers(adapter)
    if adapter.carries:  # what is carried is there in every layer, corrected or not
        return adapter
    return adapter if len(layers) in (0, len(adapter.config.receiver_layers)) else keep_layers(adapter, layers)


def keep_layers(adapter: CacheAdapter, layers: Sequence[int]) -> CacheAdapter:
    """An adapter that holds only ``layers`` of ``adapter``: the same edits there, and what closed gates do elsewhere.

    Args:
        adapter: The adapter; it stays as it is.
        layers: Receiver layers, in any order.

    Raises:
        SettingError: If there is none, or one that the adapter does not edit.
    """
    config, kept = adapter.config, sorted(set(layers))
    if adapter.carries:
        raise SettingError(f"pooler={config.settings.pooler!r} fills every layer; none can be left out.")
    unknown = sorted(set(kept) - set(config.receiver_layers))
    if unknown or not kept:
        raise SettingError(f"layers={kept} must be one or more of {list(config.receiver_layers)}.")
    places = torch.tensor([config.receiver_layers.index(layer) for layer in kept])
    # Every parameter's first dimension counts the edited layers.
    tensors = {name: tensor[places].clone() for name, tensor in adapter.state_dict().items()}
    pruned = CacheAdapter.empty(replace(config, settings=replace(config.settings, layers=tuple(kept))))
    pruned.load_state_dict(tensors, strict=True, assign=True)
    return pruned.train(adapter.training)
