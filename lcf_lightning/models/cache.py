"""`KVCache`: what a frozen model remembers of a text, as a value.

Only this file and the model families know transformers' ``Cache``. A prefill gives a `KVCache`, an edit gives another,
and a continuation reads one without changing it, so any number of arms can share a prefill.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from lcf_lightning.errors import GeometryError
from lcf_lightning.models.continuation import Continuation
from lcf_lightning.models.families import family_of, following
from lcf_lightning.models.geometry import KV

if TYPE_CHECKING:
    from lcf_lightning.models.rotary import Rotary


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, and which tokens are real.

    Attributes:
        keys: One tensor ``[batch, kv_heads, tokens, head_dim]`` a layer, in the model's dtype, rotated as cached.
        values: The same shapes.
        mask: ``[batch, tokens]``, bool, False on padding.
        sent: ``[batch, tokens]``, bool: what of it a message may hold; null for all.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    sent: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """``[batch, tokens]``, int64: each token's position id, counted over real tokens only."""
        return positions_of(self.mask)

    def read(self, layers: tuple[int, ...], rotary: Rotary | None = None, start: int = 0) -> KV:
        """The given layers from ``start`` on, stacked; keys un-rotated where ``rotary`` is given. Padding is zero."""
        keys = torch.stack([self.keys[layer][:, :, start:] for layer in layers])
        values = torch.stack([self.values[layer][:, :, start:] for layer in layers])
        if rotary is not None:
            keys = rotary.apply(keys, layers, self.positions[:, start:], inverse=True)
        # Padding may hold anything; zero times a masked weight must stay zero.
        padding = ~self.mask[None, :, None, start:, None]
        return KV(keys.masked_fill(padding, 0), values.masked_fill(padding, 0))

    def spans_sent(self, spans: Tensor) -> Tensor:
        """``spans`` of these tokens, int64, with -1 at those that are not sent."""
        return spans if self.sent is None else spans.masked_fill(~self.sent.reshape(spans.shape), -1)

    def edit(self, layers: tuple[int, ...], delta: KV, rotary: Rotary | None = None, start: int = 0) -> KVCache:
        """A new cache with ``delta`` added to the given layers.

        Args:
            layers: The layers to edit, in ``delta``'s order.
            delta: What to add, ``[len(layers), batch, kv_heads, tokens, head_dim]``.
            rotary: Where given, ``delta.keys`` is meant for un-rotated keys. Rotation is linear, so rotating the
                residual and adding it equals un-rotating, adding and rotating back, and adding zero changes no bit.
            start: How many of the first tokens stay as they are; ``delta`` has none for them.

        Raises:
            GeometryError: If ``delta`` does not have the shape of the layers it edits.
        """
        batch, heads, tokens, size = self.keys[0].shape
        expected = (len(layers), batch, heads, tokens - start, size)
        for name, tensor in zip(("keys", "values"), delta, strict=True):
            if tuple(tensor.shape) != expected:
                raise GeometryError(f"delta.{name} has shape {tuple(tensor.shape)}; the cache needs {expected}.")
        added = rotary.apply(delta.keys, layers, self.positions[:, start:]) if rotary is not None else delta.keys
        keys, values = (
            _edited(side, layers, delta, start) for side, delta in ((self.keys, added), (self.values, delta.values))
        )
        return replace(self, keys=keys, values=values)

    def prepend(self, layers: tuple[int, ...], tokens: KV, present: Tensor, rotary: Rotary, start: int = 0) -> KVCache:
        """A new cache that begins with some tokens, as if its model had read them first: its own move up by as many.

        Args:
            layers: The layers whose keys and values ``tokens`` holds, in its order; in others they are zero.
            tokens: ``[len(layers), batch, kv_heads, n, head_dim]``, keys un-rotated; finite also where absent.
            present: ``[batch, n]``, bool, False on tokens that are padding.
            rotary: Of the model that made the cache.
            start: Behind how many of its first tokens they come instead; then of a cache without padding.

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
        keys, values = (_every_layer(side, layers, len(every)) for side in tokens)
        own_keys, own_values = (torch.stack(side) for side in (self.keys, self.values))
        unrotated = rotary.apply(own_keys[:, :, :, start:], every, self.positions[:, start:], inverse=True)
        mask = torch.cat([self.mask[:, :start], present, self.mask[:, start:]], dim=1)
        # All at once: some models rotate by tables that depend on how long a text is.
        keys = rotary.apply(torch.cat([keys, unrotated], dim=3), every, positions_of(mask)[:, start:])
        keys = torch.cat([own_keys[:, :, :, :start], keys.to(own_keys.dtype)], dim=3)
        ahead, behind = own_values.split([start, own_values.shape[3] - start], dim=3)
        values = torch.cat([ahead, values.to(own_values.dtype), behind], dim=3)
        return padded_left(keys, values, mask)

    def rows(self, index: Tensor) -> KVCache:
        """The cache of some rows of the batch, ``index`` ``[rows]``, int64, in that order; a row may come twice."""
        keys, values = (tuple(tensor[index] for tensor in tensors) for tensors in (self.keys, self.values))
        return KVCache(keys, values, self.mask[index], None if self.sent is None else self.sent[index])

    def with_rows(self, index: Tensor, other: KVCache) -> KVCache:
        """The cache with the rows of ``other``, which is as long or longer, in place of those at ``index``."""
        width = other.mask.shape[1] - self.mask.shape[1]
        keys, values = (
            tuple(pad(mine, (0, 0, width, 0)).index_copy(0, index, theirs) for mine, theirs in zip(*both, strict=True))
            for both in ((self.keys, other.keys), (self.values, other.values))
        )
        return KVCache(keys, values, pad(self.mask, (width, 0)).index_copy(0, index, other.mask))

    def without_last(self) -> KVCache:
        """The cache before the last token was read."""
        return self.until(self.mask.shape[1] - 1)

    def until(self, tokens: int) -> KVCache:
        """The cache when only its first so many tokens had been read."""
        keys, values = ([side[:, :, :tokens] for side in sides] for sides in (self.keys, self.values))
        return KVCache(tuple(keys), tuple(values), self.mask[:, :tokens])


def _edited(side: tuple[Tensor, ...], layers: tuple[int, ...], delta: Tensor, start: int) -> tuple[Tensor, ...]:
    """A side of a cache with ``delta`` ``[len(layers), …]`` added to some layers: one sum for all of them."""
    before = torch.stack([side[layer] for layer in layers])
    added = before[:, :, :, start:] + delta.to(before.dtype)
    after = dict(zip(layers, torch.cat([before[:, :, :, :start], added], dim=3) if start else added, strict=True))
    return tuple(after.get(layer, kept) for layer, kept in enumerate(side))


def _every_layer(side: Tensor, layers: tuple[int, ...], count: int) -> Tensor:
    """``side`` ``[len(layers), …]`` with zeros for the layers of ``count`` that it does not hold."""
    held, nothing = dict(zip(layers, side, strict=True)), torch.zeros_like(side[0])
    return torch.stack([held.get(layer, nothing) for layer in range(count)])


def positions_of(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only. ``forward`` would count padding too, wrongly and silently."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor | None = None,
    largest: int | None = None,
) -> KVCache:
    """Read a batch of texts.

    Args:
        model: A frozen model.
        ids: ``[batch, tokens]``, int64, padded on the left (a sliding window counts slots, not positions).
        mask: ``[batch, tokens]``, bool, False on padding.
        positions: ``[batch, tokens]``, int64; by default counted from the mask.
        largest: The largest of the ids, if the host knows it, as of what it has padded on the left itself (`Tokens`).
            Null to look at ids and mask, which waits for the device.

    Raises:
        GeometryError: If the shapes differ, a row is padded on the right or a token is none of the model's.
    """
    if largest is None:
        check_prompts(ids, mask)
        largest = int(ids.max()) if ids.numel() else 0
    _check_tokens(ids, mask)
    known = model.config.get_text_config(decoder=True).vocab_size
    if largest >= known:
        raise GeometryError(f"ids hold token {largest}; the model knows {known} tokens.")
    cache = family_of(model.config.get_text_config(decoder=True)).new_cache()
    remember(model, cache, ids, mask, positions_of(mask) if positions is None else positions)
    return from_transformers(model, cache, mask)


def continue_from(model: PreTrainedModel, cache: KVCache, ids: Tensor, mask: Tensor) -> Continuation:
    """Read more tokens on top of a cache, which stays as it is; gradients flow into it.

    Args:
        model: The model that made the cache.
        cache: The cache of the tokens so far.
        ids: ``[batch, tokens]``, int64, padded on the right.
        mask: ``[batch, tokens]``, bool, False on padding.
    """
    _check_tokens(ids, mask)
    full = torch.cat([cache.mask, mask], dim=1)
    positions = positions_of(full)[:, cache.mask.shape[1] :]
    said = forward(Continuation.reader(model), to_transformers(model, cache), ids, full, positions)
    return Continuation.of(model, said, ids.device)


def extend(model: PreTrainedModel, cache: KVCache, ids: Tensor, mask: Tensor, hidden: int = 0) -> KVCache:
    """Read more tokens on top of a cache, which stays as it is; what came out of it remembers both.

    Gradients flow into the cache.

    Args:
        model: The model that made the cache.
        cache: The cache of the tokens so far.
        ids: ``[batch, tokens]``, int64, padded on the right: a sliding window counts slots, not positions.
        mask: ``[batch, tokens]``, bool, False on padding.
        hidden: How many of the cache's last tokens are not looked at, though their places are counted.
    """
    _check_tokens(ids, mask)
    tokens, full = cache.mask.shape[1], torch.cat([cache.mask, mask], dim=1)
    past, seen = to_transformers(model, cache), full.clone()
    seen[:, tokens - hidden : tokens] = False
    remember(model, past, ids, seen, positions_of(full)[:, tokens:])
    longer = from_transformers(model, past, full)
    if len(full) == 1:  # one text has no padding
        return longer
    return padded_left(torch.stack(longer.keys), torch.stack(longer.values), full)


def remember(model: PreTrainedModel, past: Cache, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Any:
    """Have ``past`` remember more tokens. Nobody asks what is said of them: the head is left out where it can be."""
    reader = Continuation.reader(model)
    return forward(reader, past, ids, mask, positions, **options, **({"logits_to_keep": 1} if reader is model else {}))


def padded_left(keys: Tensor, values: Tensor, mask: Tensor) -> KVCache:
    """All layers' tokens with all padding before them: a sliding window counts slots, not positions."""
    order = real_last(mask)
    index = order[None, :, None, :, None].expand(keys.shape)
    return KVCache(tuple(keys.gather(3, index)), tuple(values.gather(3, index)), mask.gather(1, order))


def real_last(mask: Tensor) -> Tensor:
    """The order, ``[batch, tokens]``, int64, in which what ``mask`` marks comes last, else as it was."""
    return mask.byte().argsort(dim=1, stable=True)


def to_transformers(model: PreTrainedModel, cache: KVCache, size: int | None = None) -> Cache:
    """A cache that ``model`` may append to; ``cache`` stays as it is.

    Where ``size`` is given, one with room for so many tokens in all, which does not grow, if the model's family has it
    and its layers are on one device. Else each layer's part goes where that layer is when the model comes to it.
    """
    config = model.config.get_text_config(decoder=True)
    family = family_of(config)
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    static = None if size is None or spread else family.static_cache(config, cache.keys, cache.values, size)
    filled = family.filled_cache(cache.keys, cache.values) if static is None else static
    return following(filled) if spread else filled


def from_transformers(model: PreTrainedModel, cache: Cache, mask: Tensor) -> KVCache:
    """What ``model`` has filled, as a value, all on the device of its mask, wherever the model's layers are."""
    sides = family_of(model.config.get_text_config(decoder=True)).keys_values(cache)
    keys, values = (tuple(tensor.to(mask.device) for tensor in side) for side in sides)
    return KVCache(keys, values, mask)


def forward(model: nn.Module, past: Cache, ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Any:
    """What a model, or its decoder, says of tokens that it reads on ``past``, which remembers them then.

    In the model's own dtype, whatever the precision of the training around it.
    """
    with torch.autocast(ids.device.type, enabled=False):
        return model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=True,
            **{cache_argument(type(model)): past}, **options,
        )  # fmt: skip


def cache_argument(model: type[nn.Module]) -> str:
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
