"""`CacheAdapter`: all that is trained. Layer map, pooler, fuser and gates.

Knows tensors only: no tokenizer, no transformers model, no Lightning.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.folder import local_folder, read_config, read_tensors, write_folder
from lcf_lightning.adapter.gates import LayerGates
from lcf_lightning.adapter.hub import upload
from lcf_lightning.adapter.layers import LayerFFN, aligned
from lcf_lightning.adapter.parts import Fuser, Pooler, Summaries, build_part
from lcf_lightning.digests import tensor_digest
from lcf_lightning.errors import AdapterFileError, GeometryError, SettingError, reason
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV, Geometry


class CacheAdapter(nn.Module):
    """Turns a sharer's cache into an edit of a receiver's: ``R' = R + g·(α ⊙ Δ)`` (LCF, arXiv 2605.22863).

    Where it `prepends`, ``g·(α ⊙ Δ)`` are tokens of their own, ``R' = [g·(α ⊙ Δ); R]``, and where it `carries` what was
    sent is one already: ``R' = [S + g·(α ⊙ Δ); R]``.

    Args:
        config: Settings and geometry of both models.

    Example:
        >>> message = adapter.pool(sharer_cache.read(config.sharer_layers), spans)
        >>> delta = adapter(message, receiver_cache.read(config.receiver_layers))
        >>> edited = receiver_cache.edit(config.receiver_layers, delta)
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        settings, shape = config.settings, config.shape
        self.pooler = None if settings.pooler is None else build_part(Pooler, settings.pooler, shape)
        # A pooler of before counts its spans itself.
        self._counted = self.pooler is not None and "extent" in signature(self.pooler.summarise).parameters
        if self.carries:
            shape = replace(shape, sharer=config.receiver.geometry)  # in whose shape the message comes
        self.fuser = build_part(Fuser, settings.fuser, shape)
        self.gates = LayerGates(shape.layers, settings.gate_init, settings.gate_noise)
        if settings.zero_init or self.carries:
            for last in self.fuser.last_maps:
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    @property
    def prepends(self) -> bool:
        """Whether a message becomes tokens before the receiver's own, and does not edit these."""
        return self.pooler is not None and self.pooler.prepends

    @property
    def carries(self) -> bool:
        """Whether a message holds tokens in the receiver's shape, which the fuser corrects."""
        return self.pooler is not None and self.pooler.carries

    @property
    def poolable(self) -> bool:
        """Whether a message can be pooled over its spans before it is sent."""
        return self.pooler is not None and self.pooler.poolable

    def pool(self, cache: KV, index: Tensor, extent: Extent | None = None) -> Summaries:
        """What the receiver is given of one sharer: `summarise`, then `merge`.

        Returns:
            Of one vector with the ``span`` pooler, of one for each span with the ``prefix`` pooler, of one for each
            token with the ``carry`` pooler, and of as many as the receiver has tokens without a pooler.
        """
        return self.merge(self.summarise(cache, index, extent))

    def summarise(self, cache: KV, index: Tensor, extent: Extent | None = None) -> Summaries:
        """What a message carries: a summary of each span, or the aligned tokens where there is no pooler.

        Args:
            cache: The sharer's layers `AdapterConfig.sharer_layers`, ``[layers, batch, sharer heads, tokens, sharer
                head size]``.
            index: int64. With a pooler ``[batch, tokens]``, the span of each sharer token, -1 for none; without
                ``[batch, receiver tokens]``, for each receiver token the sharer token it is aligned with.
            extent: Of an index that the collator has checked (`Batch.extent`); null to check it here, which waits for
                the device.

        Raises:
            GeometryError: If ``cache`` or ``index`` does not fit this adapter or each other.
        """
        cache = self._checked(cache, "sharer", self.config.sharer.geometry, len(self.config.sharer_layers))
        if self.pooler is None:
            return Summaries(aligned(cache, index, extent), torch.ones_like(index, dtype=torch.bool))
        return self.pooler.summarise(cache, index, extent) if self._counted else self.pooler.summarise(cache, index)

    def merge(self, summaries: Summaries) -> Summaries:
        """Summaries of one sharer or several, pooled as far as they can be before the receiver is known.

        Raises:
            GeometryError: If they do not fit this adapter.
        """
        summaries = summaries._replace(kv=self._checked(summaries.kv, "message", self.config.message))
        return summaries if self.pooler is None else self.pooler.merge(summaries)

    def forward(
        self,
        summaries: Summaries,
        receiver: KV | None,
        temperature: float | None = None,
        opened: Tensor | None = None,
    ) -> KV:
        """The gated residual to add to the receiver's cache, or, where `prepends`, the tokens to put before it.

        Args:
            summaries: What `pool` returned.
            receiver: The edited receiver layers, ``[layers, batch, heads, tokens, head size]``, any float dtype; None
                where the fuser reads the sharer only.
            temperature: Gate temperature in training; None for the hard gates of evaluation.
            opened: Then, `LayerGates.open` where it is known already; null to look, which waits for the device.

        Returns:
            A KV of ``receiver``'s shape, or of as many tokens as were sent, in the adapter's dtype.

        Raises:
            GeometryError: If layers, batch, heads, sizes or tokens do not fit this adapter or each other.
        """
        if (receiver is None) == self.fuser.reads_receiver:
            needed = "the receiver's layers, not None" if receiver is None else "None: its fuser reads the sharer only"
            raise GeometryError(f"receiver of pooler={self.config.settings.pooler or 'null'} must be {needed}.")
        kv = self._checked(summaries.kv, "message", self.config.message)
        if receiver is not None:
            receiver = self._checked(receiver, "receiver", self.config.receiver.geometry)
            _require_fit(kv, receiver)
        carrier = self.pooler if self.carries else None
        hard = temperature is None
        layers = (self.gates.open if opened is None else opened) if hard else self._all
        # Before the fuser, whose dropout draws as many numbers as there are tokens: noise does not depend on these.
        gates = self.gates(temperature).view(-1, 2, 1, 1, 1, 1)
        delta = self._fused(layers, kv if carrier is None else carrier.standardised(kv), receiver)
        gated = KV(gates[:, 0] * delta.keys, gates[:, 1] * delta.values)
        return gated if carrier is None else carrier.corrected(kv, gated)

    @property
    def _all(self) -> Tensor:
        return torch.arange(len(self.config.receiver_layers), device=self.gates.logits.device)

    def _fused(self, layers: Tensor, *caches: KV | None) -> KV:
        """What the fuser gives for some layers (places, ascending), and zero for the rest, which are not computed.

        So a pruned adapter computes bit for bit what the full one does with the other gates closed. The parameters of
        the rest are copied for it; whoever loads an adapter for use takes the closed layers out (`Channel`).
        """
        count = len(self.gates.logits)
        if len(layers) == count:
            return self.fuser(*caches)
        tensors = (*self.fuser.named_parameters(), *self.fuser.named_buffers())
        parameters = {name: tensor[layers] for name, tensor in tensors}
        parts = tuple(cache and KV(*(tensor[layers] for tensor in cache)) for cache in caches)
        delta = functional_call(self.fuser, parameters, parts)
        return KV(*(tensor.new_zeros(count, *tensor.shape[1:]).index_copy(0, layers, tensor) for tensor in delta))

    def _checked(self, cache: KV, role: str, geometry: Geometry, layers: int | None = None) -> KV:
        """``cache`` in the adapter's dtype, if it has this geometry, and so many layers (default: the edited ones)."""
        layers = len(self.config.receiver_layers) if layers is None else layers
        for name, tensor in zip(KV._fields, cache, strict=True):
            shape = tuple(tensor.shape)
            if len(shape) != 5 or (shape[0], shape[2], shape[4]) != (layers, geometry.kv_heads, geometry.head_dim):
                raise GeometryError(
                    f"{role} {name} have shape {shape}; expected "
                    f"[{layers}, batch, {geometry.kv_heads}, tokens, {geometry.head_dim}]."
                )
        if cache.keys.shape != cache.values.shape:
            raise GeometryError(f"{role} keys {cache.keys.shape} and values {cache.values.shape} differ in shape.")
        dtype = self.gates.logits.dtype
        return KV(cache.keys.to(dtype), cache.values.to(dtype))

    def recompute_blocks(self) -> None:
        """From now on the backward pass computes the fuser's blocks once more, see `LayerFFN`.

        Raises:
            SettingError: If the fuser has none.
        """
        blocks = [module for module in self.fuser.modules() if isinstance(module, LayerFFN)]
        if not blocks:
            raise SettingError(
                f"activation_checkpointing=true must be false with fuser={self.config.settings.fuser!r}: it has no "
                "LayerFFN, which is what is computed twice."
            )
        for block in blocks:
            block.recomputed = True

    def fingerprint(self) -> str:
        """A digest of what decides how a message is written and read.

        That is parameters, settings, both models' geometry, and how prompts are written (``metadata["prompts"]``).
        Settings that release 0.1.0 did not have enter only where they differ from their default, so that a later
        release gives an adapter the fingerprint that its messages carry.
        """
        config = self.config
        geometries = [asdict(model.geometry) for model in (config.sharer, config.receiver)]
        facts = json.dumps([config.settings.deciding(), *geometries, config.metadata.get("prompts")], sort_keys=True)
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor_digest(tensor)}".encode())
        return digest.hexdigest()

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters, ``total``, ``per_layer`` (without the pool) and ``pool``; and numbers that have a
        ``closed_form`` and are not trained."""
        total = sum(parameter.numel() for parameter in self.parameters())
        pool = sum(parameter.numel() for parameter in self.pooler.parameters()) if self.pooler is not None else 0
        per_layer = (total - pool) // len(self.config.receiver_layers)
        closed_form = sum(buffer.numel() for buffer in self.buffers())
        return {"total": total, "per_layer": per_layer, "pool": pool, "closed_form": closed_form}

    def save_pretrained(
        self, folder: str | Path, metadata: dict[str, Any] | None = None, location: str | Path | None = None
    ) -> None:
        """Write the adapter folder: ``lcf_config.json``, ``lcf_adapter.safetensors`` and a model card.

        ``metadata`` (JSON-ready) replaces the config's where it is given. The lines of the card load ``location``, by
        default the folder. An earlier adapter in the folder is replaced as one: no kill leaves the weights of one with
        the config of another.
        """
        config = self.config if metadata is None else replace(self.config, metadata=metadata)
        write_folder(Path(folder), config, self.state_dict(), None if location is None else str(location))

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload the adapter folder to ``owner/name`` on the hub, as `save_pretrained` writes it.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), self.config, self.state_dict(), repository)
            return upload(Path(folder), repository, private)

    @classmethod
    def empty(cls, config: AdapterConfig) -> CacheAdapter:
        """An adapter without memory (on ``meta``), whose parameters are to be assigned.

        Raises:
            AdapterFileError: If a tensor would be larger than any can be.
        """
        try:
            with torch.device("meta"):
                return cls(config)
        except RuntimeError as error:
            raise AdapterFileError(f"no adapter can be as large as its config says: {reason(error)}") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> CacheAdapter:
        """Read an adapter folder, in ``eval()`` mode and in the dtype it was saved in.

        No module is imported: a part that is not of this package must have been imported before.

        Args:
            folder: A local folder, or ``owner/name`` on the hub.
            revision: Branch, tag or commit on the hub; null for its default branch.

        Raises:
            AdapterFileError: If a file is missing or damaged, the format version or a part is unknown, a tensor is
                missing, too much, or of the wrong shape or dtype, or the weights are not those that the config
                belongs to. Nothing is used before all is checked.
        """
        folder = local_folder(folder, revision)
        config, digest = read_config(folder)
        adapter = cls.empty(config)
        adapter.load_state_dict(read_tensors(folder, digest, adapter.state_dict()), strict=True, assign=True)
        return adapter.requires_grad_(True).eval()


def _require_fit(message: KV, receiver: KV) -> None:
    """Raise a GeometryError unless what was sent fits a receiver's cache."""
    (batch, n), (rows, tokens) = (cache.keys.shape[1:4:2] for cache in (message, receiver))
    if batch != rows or n not in (1, tokens):
        raise GeometryError(
            f"message of {batch} examples × {n} tokens does not fit a receiver cache of {rows} × {tokens}; the batch "
            "must be equal, and the tokens 1 or equal."
        )
