"""`Rotary`: a model's own rotary embedding, put on keys or taken off them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lcf_lightning.errors import ModelError
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.families import family_of

_OTHERWISE = "set unrotate_keys to false, with a pooler that edits (such as span) or null."


class Rotary:
    """A model's own rotary embedding, applied to stacked keys or taken off again.

    ``k_cached = k·cos + J(k)·sin`` with the family's quarter turn ``J``; the inverse divides by ``cos² + sin²``, which
    is 1 except where a model scales its rotary embedding (YaRN).

    Raises:
        ModelError: If the model has no rotary module, or rotates in another way than its family says.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        self._family = family_of(config)
        module = self._family.rotary_module(model)
        if module is None:
            raise ModelError(f"{type(model).__name__} has no rotary module; {_OTHERWISE}")
        self._module = module
        self._layer_types = self._family.layer_types(module, config)
        self._verify(model)

    def apply(self, keys: Tensor, layers: tuple[int, ...], positions: Tensor, *, inverse: bool = False) -> Tensor:
        """Rotate ``keys`` ``[layers, batch, kv_heads, tokens, head_dim]`` to ``positions`` ``[batch, tokens]``.

        Computed and returned in float32: half-precision tables would cost accuracy that the cache still has.
        """
        keys = keys.float()
        types = [self._layer_types[layer] for layer in layers]
        tables = {kind: self._cos_sin(keys, positions, kind) for kind in dict.fromkeys(types)}
        if len(tables) == 1:
            return self._turn(keys, *tables[types[0]], inverse=inverse)
        return torch.stack([self._turn(k, *tables[kind], inverse=inverse) for k, kind in zip(keys, types, strict=True)])

    def _cos_sin(self, keys: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        kwargs = {} if kind is None else {"layer_type": kind}
        cos, sin = self._module(keys, positions, **kwargs)  # [batch, tokens, rotated dims]
        return cos.unsqueeze(1).to(keys.device), sin.unsqueeze(1).to(keys.device)

    def _turn(self, keys: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
        rotated = cos.shape[-1]
        part, rest = keys[..., :rotated], keys[..., rotated:]
        half = self._family.rotate_half(part)
        part = (part * cos - half * sin) / (cos**2 + sin**2) if inverse else part * cos + half * sin
        return torch.cat([part, rest], dim=-1) if rest.shape[-1] else part

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
                f"{type(model).__name__} does not rotate keys as {type(self._family).__name__} says (un-rotated keys "
                f"differ by {error:.2g} between positions); add a Family for it, or {_OTHERWISE}"
            )
