"""`KVCache`: what a frozen model remembers of a text, as a value.

The only file that knows transformers' ``Cache``. A prefill gives a `KVCache`, an edit gives another, and a
continuation reads one without changing it, so any number of arms can share a prefill.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lcf_lightning.errors import GeometryError, ModelError
from lcf_lightning.models.geometry import KV

_OTHERWISE = "set unrotate_keys to false, with pooler=span or null."


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, and which tokens are real.

    Attributes:
        keys: One tensor ``[batch, kv_heads, tokens, head_dim]`` a layer, in the model's dtype, rotated as cached.
        values: The same shapes.
        mask: ``[batch, tokens]``, bool, False on padding.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """``[batch, tokens]``, int64: each token's position id, counted over real tokens only."""
        return positions_of(self.mask)

    def read(self, layers: tuple[int, ...], rotary: Rotary | None = None) -> KV:
        """The given layers, stacked; keys un-rotated where ``rotary`` is given. Padding reads as zero."""
        keys = torch.stack([self.keys[layer] for layer in layers])
        values = torch.stack([self.values[layer] for layer in layers])
        if rotary is not None:
            keys = rotary.apply(keys, layers, self.positions, inverse=True)
        # Padding may hold anything; zero times a masked weight must stay zero.
        padding = ~self.mask[None, :, None, :, None]
        return KV(keys.masked_fill(padding, 0), values.masked_fill(padding, 0))

    def edit(self, layers: tuple[int, ...], delta: KV, rotary: Rotary | None = None) -> KVCache:
        """A new cache with ``delta`` added to the given layers.

        Args:
            layers: The layers to edit, in ``delta``'s order.
            delta: What to add, ``[len(layers), batch, kv_heads, tokens, head_dim]``.
            rotary: Where given, ``delta.keys`` is meant for un-rotated keys. Rotation is linear, so rotating the
                residual and adding it equals un-rotating, adding and rotating back, and adding zero changes no bit.

        Raises:
            GeometryError: If ``delta`` does not have the shape of the layers it edits.
        """
        expected = (len(layers), *self.keys[0].shape)
        for name, tensor in zip(("keys", "values"), delta, strict=True):
            if tuple(tensor.shape) != expected:
                raise GeometryError(f"delta.{name} has shape {tuple(tensor.shape)}; the cache needs {expected}.")
        added = rotary.apply(delta.keys, layers, self.positions) if rotary is not None else delta.keys
        keys, values = list(self.keys), list(self.values)
        for index, layer in enumerate(layers):
            keys[layer] = keys[layer] + added[index].to(keys[layer].dtype)
            values[layer] = values[layer] + delta.values[index].to(values[layer].dtype)
        return replace(self, keys=tuple(keys), values=tuple(values))

    def prepend(self, layers: tuple[int, ...], tokens: KV, present: Tensor, rotary: Rotary) -> KVCache:
        """A new cache that begins with some tokens, as if its model had read them first: its own move up by as many.

        Args:
            layers: The layers whose keys and values ``tokens`` holds, in its order; in others they are zero.
            tokens: ``[len(layers), batch, kv_heads, n, head_dim]``, keys un-rotated; finite also where absent.
            present: ``[batch, n]``, bool, False on tokens that are padding.
            rotary: Of the model that made the cache.

        Raises:
            GeometryError: If ``tokens`` or ``present`` does not fit the cache.
        """
        batch, heads, _, size = self.keys[0].shape
        expected = (len(layers), batch, heads, present.shape[-1], size)
        if len(present) != batch:
            raise GeometryError(f"present {tuple(present.shape)} must mark the tokens of a batch of {batch}.")
        for name, tensor in zip(("keys", "values"), tokens, strict=True):
            if tuple(tensor.shape) != expected:
                raise GeometryError(f"tokens.{name} has shape {tuple(tensor.shape)}; the cache needs {expected}.")
        every = tuple(range(len(self.keys)))
        places = torch.tensor(layers, device=present.device)
        keys, values = (side.new_zeros(len(every), *side.shape[1:]).index_copy(0, places, side) for side in tokens)
        own = rotary.apply(torch.stack(self.keys), every, self.positions, inverse=True)
        mask = torch.cat([present, self.mask], dim=1)
        # All at once: some models rotate by tables that depend on how long a text is.
        keys = rotary.apply(torch.cat([keys, own], dim=3), every, positions_of(mask)).to(self.keys[0].dtype)
        values = torch.cat([values.to(self.values[0].dtype), torch.stack(self.values)], dim=3)
        # Padding to the left again: a sliding window counts slots, not positions.
        order = mask.byte().argsort(dim=1, stable=True)
        index = order[None, :, None, :, None].expand(len(every), -1, heads, -1, size)
        keys, values = keys.gather(3, index), values.gather(3, index)
        return KVCache(tuple(keys), tuple(values), mask.gather(1, order))

    def rows(self, index: Tensor) -> KVCache:
        """The cache of some rows of the batch, ``index`` ``[rows]``, int64, in that order; a row may come twice."""
        keys, values = (tuple(tensor[index] for tensor in tensors) for tensors in (self.keys, self.values))
        return KVCache(keys, values, self.mask[index])

    def without_last(self) -> KVCache:
        """The cache before the last token was read."""
        keys, values = ([tensor[:, :, :-1] for tensor in tensors] for tensors in (self.keys, self.values))
        return KVCache(tuple(keys), tuple(values), self.mask[:, :-1])

    def to_transformers(self) -> DynamicCache:
        """A cache that transformers may append to; this one stays as it is."""
        # No config: every layer is a plain one that keeps all tokens. `update` concatenates, so it never writes
        # into our tensors.
        return DynamicCache(list(zip(self.keys, self.values, strict=True)))


class Rotary:
    """A model's own rotary embedding, applied to stacked keys or taken off again.

    ``k_cached = k·cos + rotate_half(k)·sin``; the inverse divides by ``cos² + sin²``, which is 1 except where a
    model scales its rotary embedding (YaRN).

    Raises:
        ModelError: If the model has no rotary module, or rotates in another way than by halves.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        module: nn.Module | None = getattr(model.get_decoder(), "rotary_emb", None)
        if module is None:
            raise ModelError(f"{type(model).__name__} has no rotary module; {_OTHERWISE}")
        self._module = module
        config = model.config.get_text_config(decoder=True)
        by_type = "layer_type" in inspect.signature(module.forward).parameters
        count = config.num_hidden_layers
        self._layer_types: list[str | None] = list(config.layer_types) if by_type else [None] * count
        self._verify(model)

    def apply(self, keys: Tensor, layers: tuple[int, ...], positions: Tensor, *, inverse: bool = False) -> Tensor:
        """Rotate ``keys`` ``[layers, batch, kv_heads, tokens, head_dim]`` to ``positions`` ``[batch, tokens]``.

        Computed and returned in float32: half-precision tables would cost accuracy that the cache still has.
        """
        keys = keys.float()
        types = [self._layer_types[layer] for layer in layers]
        tables = {kind: self._cos_sin(keys, positions, kind) for kind in dict.fromkeys(types)}
        if len(tables) == 1:
            return _rotate(keys, *tables[types[0]], inverse=inverse)
        return torch.stack([_rotate(k, *tables[kind], inverse=inverse) for k, kind in zip(keys, types, strict=True)])

    def _cos_sin(self, keys: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        kwargs = {} if kind is None else {"layer_type": kind}
        cos, sin = self._module(keys, positions, **kwargs)  # [batch, tokens, rotated dims]
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def _verify(self, model: PreTrainedModel) -> None:
        """A token alone attends only to itself, so its un-rotated keys must not depend on its position."""
        tokens = torch.arange(8, device=model.device)[:, None]  # several: a padding token's keys may be zero
        mask = torch.ones_like(tokens, dtype=torch.bool)
        unrotated = []
        for position in (1, 6):
            cache = prefill(model, tokens, mask, positions=mask.long() * position)
            keys = torch.stack(cache.keys).float()
            layers = tuple(range(len(cache.keys)))
            unrotated.append(self.apply(keys, layers, mask.long() * position, inverse=True))
        tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
        error = (unrotated[0] - unrotated[1]).abs().max() / unrotated[0].abs().max()
        if not error < tolerance:
            raise ModelError(
                f"{type(model).__name__} does not rotate keys by halves (un-rotated keys differ by {error:.2g} between "
                f"positions); {_OTHERWISE}"
            )


def _rotate(keys: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    rotated = cos.shape[-1]
    part, rest = keys[..., :rotated], keys[..., rotated:]
    left, right = part.chunk(2, dim=-1)
    half = torch.cat([-right, left], dim=-1)
    part = (part * cos - half * sin) / (cos**2 + sin**2) if inverse else part * cos + half * sin
    return torch.cat([part, rest], dim=-1) if rest.shape[-1] else part


def positions_of(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only. ``forward`` would count padding too, wrongly and silently."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def prefill(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor | None = None) -> KVCache:
    """Read a batch of texts.

    Args:
        model: A frozen model.
        ids: ``[batch, tokens]``, int64, padded on the left (a sliding window counts slots, not positions).
        mask: ``[batch, tokens]``, bool, False on padding.
        positions: ``[batch, tokens]``, int64; by default counted from the mask.

    Raises:
        GeometryError: If the shapes differ or a row is padded on the right.
    """
    check_prompts(ids, mask)
    cache = DynamicCache()
    with torch.autocast(ids.device.type, enabled=False):  # a frozen model has a dtype of its own
        _forward(model, cache, ids, mask, positions_of(mask) if positions is None else positions, keep=1)
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    values = [getattr(layer, "values", None) for layer in cache.layers]
    if any(tensor is None for tensor in keys + values):
        raise ModelError(f"{type(model).__name__} has layers without keys and values, which cannot be edited.")
    return KVCache(tuple(keys), tuple(values), mask)  # type: ignore[arg-type]


def continue_from(model: PreTrainedModel, cache: KVCache, ids: Tensor, mask: Tensor) -> Tensor:
    """Read more tokens on top of a cache, which stays as it is; gradients flow into it.

    Args:
        model: The model that made the cache.
        cache: The cache of the tokens so far.
        ids: ``[batch, tokens]``, int64, padded on the right.
        mask: ``[batch, tokens]``, bool, False on padding.

    Returns:
        Logits ``[batch, tokens, vocabulary]`` in the model's dtype.
    """
    _check_tokens(ids, mask)
    full = torch.cat([cache.mask, mask], dim=1)
    positions = positions_of(full)[:, cache.mask.shape[1] :]
    return _forward(model, cache.to_transformers(), ids, full, positions, keep=0)


@torch.no_grad()
def generate(
    model: PreTrainedModel, cache: KVCache, ids: Tensor, max_new_tokens: int, stop_ids: tuple[int, ...]
) -> Tensor:
    """All tokens of `stream`: ``[batch, ≤ max_new_tokens]``, int64."""
    return torch.cat(list(stream(model, cache, ids, max_new_tokens, stop_ids)), dim=1)


def stream(
    model: PreTrainedModel, cache: KVCache, ids: Tensor, max_new_tokens: int, stop_ids: tuple[int, ...]
) -> Iterator[Tensor]:
    """Decode greedily on top of a cache, which stays as it is, a token at a time.

    Args:
        model: The model that made the cache.
        cache: The cache of all prompt tokens but the last ones.
        ids: ``[batch, tokens]``, int64: the rest of the prompt, at least its last token, without padding.
        max_new_tokens: At least 1.
        stop_ids: Tokens that end an answer; all after one is replaced by the first of them.

    Yields:
        ``[batch, 1]``, int64, until every row has ended.
    """
    past = cache.to_transformers()
    mask = torch.cat([cache.mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
    stops = torch.tensor(stop_ids, device=ids.device)
    done = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = _forward(model, past, ids, mask, positions_of(mask)[:, -ids.shape[1] :], keep=1)
        ids = torch.where(done, stops[0], logits[:, -1].argmax(-1, keepdim=True))
        done |= torch.isin(ids, stops)
        yield ids
        if bool(done.all()):
            return
        mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)


def _forward(
    model: PreTrainedModel, past: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor, keep: int
) -> Tensor:
    output: Any = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=keep,
        **{cache_argument(type(model)): past},
    )
    logits: Tensor = output.logits
    return logits


def cache_argument(model: type[PreTrainedModel]) -> str:
    """The name under which a model's ``forward`` and ``generate`` take a cache (transformers 5.24 renamed it)."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def check_prompts(ids: Tensor, mask: Tensor) -> None:
    """Raise a GeometryError unless ``ids`` and ``mask`` are prompts ``[batch, tokens]`` padded on the left."""
    _check_tokens(ids, mask)
    if ids.shape[1] and not bool(mask[:, -1].all()):
        raise GeometryError("mask must be padded on the left: every row's last token must be real.")


def _check_tokens(ids: Tensor, mask: Tensor) -> None:
    if ids.dim() != 2 or ids.shape != mask.shape:
        raise GeometryError(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)} must both be [batch, tokens].")
    if mask.dtype != torch.bool:
        raise GeometryError(f"mask has dtype {mask.dtype}; it must be torch.bool.")
