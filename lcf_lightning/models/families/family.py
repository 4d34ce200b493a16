"""`Family`: how models of one architecture describe, rotate and keep their keys and values."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from lcf_lightning.errors import GeometryError, ModelError
from lcf_lightning.models.geometry import Geometry

_FAMILIES: dict[str, type[Family]] = {}


class Family:
    """A decoder of transformers as most are: the same heads in every layer, keys cached after their rotation by halves.

    An architecture that differs is a subclass: it names its ``model_types`` and overrides what differs. Importing the
    file that defines it is enough.

    Attributes:
        model_types: ``model_type`` of the configs that this class is for.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _FAMILIES.update(dict.fromkeys(cls.model_types, cls))

    def geometry(self, config: Any) -> Geometry:
        """Layers, KV heads and head size, from a text config of transformers.

        Raises:
            GeometryError: If the config does not describe a decoder with the same KV shape in every layer.
        """
        missing = [
            name for name in ("num_hidden_layers", "num_attention_heads", "hidden_size") if not hasattr(config, name)
        ]
        if missing:
            raise GeometryError(f"model_type={config.model_type!r} has no {', '.join(missing)}: not a decoder-only LM.")
        heads = config.num_attention_heads
        return Geometry(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def positions(self, config: Any) -> int | None:
        """How many tokens a model was made to read; None where its config does not say."""
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return positions

    def token_limit(self, config: Any, layers: tuple[int, ...]) -> int | None:
        """With how many tokens in all a prompt's last token still sees its first one in any of ``layers``.

        That is how many positions the model has, and where each of these layers slides, their window. None for any
        number.
        """
        types = getattr(config, "layer_types", None)  # models of one kind of layer name none
        slides = types is None or all(types[layer] == "sliding_attention" for layer in layers)
        window = getattr(config, "sliding_window", None) if slides else None
        return min(filter(None, (self.positions(config), window)), default=None)

    def new_cache(self) -> Cache:
        """An empty cache that keeps every token of every layer, of sliding ones too."""
        return DynamicCache()

    def filled_cache(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Cache:
        """A cache of these layers, each ``[batch, kv_heads, tokens, head_dim]``, that the model may append to.

        It must not write into the tensors: other continuations read them.
        """
        # No config: every layer is a plain one that keeps all tokens. `update` concatenates.
        return DynamicCache(list(zip(keys, values, strict=True)))

    def static_cache(
        self, config: Any, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], size: int
    ) -> Cache | None:
        """A copy of these layers in a cache of ``size`` tokens, which does not grow; None where a layer slides."""
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or getattr(
            config, "sliding_window", None
        ):
            return None  # its layer of fixed size forgets what left its window, and left padding is in it
        cache = StaticCache(config=config, max_cache_len=size)
        for layer, pair in enumerate(zip(keys, values, strict=True)):
            cache.update(*pair, layer)
        return cache

    def keys_values(self, cache: Cache) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The keys and the values of a cache, a tensor ``[batch, kv_heads, tokens, head_dim]`` a layer.

        Raises:
            ModelError: If a layer has none.
        """
        keys = tuple(getattr(layer, "keys", None) for layer in cache.layers)
        values = tuple(getattr(layer, "values", None) for layer in cache.layers)
        if any(tensor is None for tensor in keys + values):
            raise ModelError("this model has layers without keys and values, which cannot be edited.")
        return keys, values  # type: ignore[return-value]

    def rotary_module(self, model: PreTrainedModel) -> nn.Module | None:
        """What gives ``cos`` and ``sin`` of positions; None where the model rotates nothing."""
        module: nn.Module | None = getattr(model.get_decoder(), "rotary_emb", None)
        return module

    def layer_types(self, module: nn.Module, config: Any) -> list[str | None]:
        """For each layer the ``layer_type`` that the rotary module asks for; None where it does not ask."""
        by_type = "layer_type" in inspect.signature(module.forward).parameters
        return list(config.layer_types) if by_type else [None] * config.num_hidden_layers

    def rotate_half(self, keys: Tensor) -> Tensor:
        """The quarter turn ``J`` of ``k·cos + J(k)·sin``, with ``J(J(k)) = −k``; ``[…, rotated dims]``."""
        left, right = keys.chunk(2, dim=-1)
        return torch.cat([-right, left], dim=-1)


def family_of(config: Any) -> Family:
    """The family of a model, by its text config's ``model_type``; the common one where none is for it."""
    return _FAMILIES.get(getattr(config, "model_type", ""), Family)()


def following(cache: Cache) -> Cache:
    """The same cache, each of whose layers goes to the device of what it is given next (`ModelSpec.device_map`)."""
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        layer.__class__ = _following(type(layer))  # type: ignore[arg-type]
    return cache


@functools.cache
def _following(kind: Any) -> Any:
    class Following(kind):  # type: ignore[misc]
        keys: Tensor
        values: Tensor

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
            self.keys, self.values = self.keys.to(key_states.device), self.values.to(value_states.device)
            return super().update(key_states, value_states, *args, **options)

    return Following
