"""`CacheAdapter`: all that is trained. Layer map, pooler, fuser and gates, and the folder they are saved in.

Knows tensors only: no tokenizer, no transformers model, no Lightning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.fusers import FUSERS
from lcf_lightning.adapter.gates import LayerGates
from lcf_lightning.adapter.hub import CARD_FILE, card, fetch, is_hub_id, upload
from lcf_lightning.adapter.poolers import POOLERS, PrefixPooler, Sent, SpanPooler, aligned
from lcf_lightning.digests import tensor_digest
from lcf_lightning.errors import AdapterFileError, GeometryError
from lcf_lightning.models.geometry import KV

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


class CacheAdapter(nn.Module):
    """Turns a sharer's cache into an edit of a receiver's: ``R' = R + g·(α ⊙ Δ)`` (LCF, arXiv 2605.22863).

    Where it `prepends`, ``g·(α ⊙ Δ)`` are tokens of their own: ``R' = [g·(α ⊙ Δ); R]``.

    Args:
        config: Settings and geometry of both models.

    Example:
        >>> sent = adapter.pool(sharer_cache.read(config.sharer_layers), spans)
        >>> delta = adapter(sent, receiver_cache.read(config.receiver_layers))
        >>> edited = receiver_cache.edit(config.receiver_layers, delta)
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        settings, layers = config.settings, len(config.receiver_layers)
        sharer, receiver = config.sharer.geometry, config.receiver.geometry
        self.pooler = POOLERS[settings.pooler](layers, sharer) if settings.pooler else None
        self.fuser = FUSERS[settings.fuser](
            layers, sharer, receiver, settings.d, settings.dropout, reads_receiver=not self.prepends
        )
        self.gates = LayerGates(layers, settings.gate_init, settings.gate_noise)
        if settings.zero_init:
            for last in self.fuser.last_maps:
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    @property
    def prepends(self) -> bool:
        """Whether a message becomes tokens before the receiver's own, and does not edit these."""
        return isinstance(self.pooler, PrefixPooler)

    def pool(self, cache: KV, index: Tensor) -> Sent:
        """What the receiver is given: `summarise`, then `merge`; or the aligned tokens where there is no pooler.

        Args:
            cache: The mapped sharer layers, ``[layers, batch, sharer heads, tokens, sharer head size]``.
            index: int64. With a pooler ``[batch, tokens]``, the span of each sharer token, -1 for none; without
                ``[batch, receiver tokens]``, for each receiver token the sharer token it is aligned with.

        Returns:
            Of one vector with the ``span`` pooler, of one for each span with the ``prefix`` pooler, and of as many as
            the receiver has tokens without a pooler.

        Raises:
            GeometryError: If ``cache`` or ``index`` does not fit this adapter or each other.
        """
        if self.pooler is None:
            return Sent(aligned(self._checked(cache, "sharer"), index), torch.ones_like(index, dtype=torch.bool))
        return self.merge(self.summarise(cache, index))

    def summarise(self, cache: KV, spans: Tensor) -> Sent:
        """The span summaries that a message carries; see `pool`.

        Raises:
            GeometryError: As `pool`, and if there is no pooler.
        """
        return self._pooler.summarise(self._checked(cache, "sharer"), spans)

    def merge(self, sent: Sent) -> Sent:
        """Summaries of one sharer or several, pooled as far as they can be before the receiver is known.

        Raises:
            GeometryError: If they do not fit this adapter, and if there is no pooler.
        """
        return self._pooler.merge(Sent(self._checked(sent.kv, "sharer"), sent.present))

    @property
    def _pooler(self) -> SpanPooler | PrefixPooler:
        if self.pooler is None:
            raise GeometryError("pooler=null: where both models read the same text there are no spans to summarise.")
        return self.pooler

    def forward(self, sent: Sent, receiver: KV | None, temperature: float | None = None) -> KV:
        """The gated residual to add to the receiver's cache, or, where `prepends`, the tokens to put before it.

        Args:
            sent: What `pool` returned.
            receiver: The edited receiver layers, ``[layers, batch, heads, tokens, head size]``, any float dtype; None
                where `prepends`.
            temperature: Gate temperature in training; None for the hard gates of evaluation.

        Returns:
            A KV of ``receiver``'s shape, or of as many tokens as were sent, in the adapter's dtype.

        Raises:
            GeometryError: If layers, batch, heads, sizes or tokens do not fit this adapter or each other.
        """
        if (receiver is None) != self.prepends:
            needed = "None: its fuser reads the sharer only" if self.prepends else "the receiver's layers, not None"
            raise GeometryError(f"receiver of pooler={self.config.settings.pooler or 'null'} must be {needed}.")
        kv = self._checked(sent.kv, "sharer")
        if receiver is not None:
            receiver = self._checked(receiver, "receiver")
            _require_fit(kv, receiver)
        layers = self.gates.open if temperature is None else self._all
        # Before the fuser, whose dropout draws as many numbers as there are tokens: the same noise on every rank.
        gates = self.gates(temperature).view(-1, 2, 1, 1, 1, 1)
        delta = self._fused(layers, kv, receiver)
        return KV(gates[:, 0] * delta.keys, gates[:, 1] * delta.values)

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
        parameters = {name: parameter[layers] for name, parameter in self.fuser.named_parameters()}
        parts = tuple(cache and KV(*(tensor[layers] for tensor in cache)) for cache in caches)
        found = functional_call(self.fuser, parameters, parts)
        return KV(*(tensor.new_zeros(count, *tensor.shape[1:]).index_copy(0, layers, tensor) for tensor in found))

    def _checked(self, cache: KV, role: str) -> KV:
        """``cache`` in the adapter's dtype, if it has this role's layers, heads and head size."""
        geometry = getattr(self.config, role).geometry
        layers = len(self.config.receiver_layers)
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

    def fingerprint(self) -> str:
        """A digest of what decides how a message is written and read.

        That is parameters, settings, both models' geometry, and how prompts are written (``metadata["prompts"]``).
        """
        config = self.config
        parts = [asdict(part) for part in (config.settings, config.sharer.geometry, config.receiver.geometry)]
        del parts[0]["gate_noise"]  # of training only, and younger than the first messages
        facts = json.dumps([*parts, config.metadata.get("prompts")], sort_keys=True)
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor_digest(tensor)}".encode())
        return digest.hexdigest()

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters: ``total``, ``per_layer`` (without the pool) and ``pool``."""
        total = sum(parameter.numel() for parameter in self.parameters())
        pool = sum(parameter.numel() for parameter in self.pooler.parameters()) if self.pooler is not None else 0
        return {"total": total, "per_layer": (total - pool) // len(self.config.receiver_layers), "pool": pool}

    def save_pretrained(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the adapter folder: ``adapter_config.json``, ``adapter_model.safetensors`` and a model card.

        ``metadata`` (JSON-ready) replaces the config's where it is given. All files are
        written aside and renamed, so that none is ever seen half-written.
        """
        folder = Path(folder)
        config = self.config if metadata is None else replace(self.config, metadata=metadata)
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_file(tensors, aside / WEIGHTS_FILE, metadata={"format": "pt"})
            (aside / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
            size = (aside / WEIGHTS_FILE).stat().st_size
            (aside / CARD_FILE).write_text(card(config, self.parameter_counts()["total"], size), encoding="utf-8")
            folder.mkdir(exist_ok=True)
            for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
                os.replace(aside / name, folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload the adapter folder to ``owner/name`` on the hub, as `save_pretrained` writes it.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repository, private)

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> CacheAdapter:
        """Read an adapter folder, in ``eval()`` mode and in the dtype it was saved in.

        Args:
            folder: A local folder, or ``owner/name`` on the hub.
            revision: Branch, tag or commit on the hub; null for its default branch.

        Raises:
            AdapterFileError: If a file is missing or damaged, the format version is unknown, a tensor is missing, too
                much, or of the wrong shape or dtype. Nothing is used before all is checked.
        """
        folder = local_folder(folder, revision)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise AdapterFileError(f"adapter={str(folder)!r} has no {name}; both files of an adapter are needed.")
        try:
            config = AdapterConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AdapterFileError(f"adapter={str(folder)!r}: {CONFIG_FILE} is damaged: {error}") from error
        with torch.device("meta"):
            adapter = cls(config)
        tensors = _read_tensors(folder / WEIGHTS_FILE, adapter.state_dict())
        adapter.load_state_dict(tensors, strict=True, assign=True)
        return adapter.requires_grad_(True).eval()


def _require_fit(sent: KV, receiver: KV) -> None:
    """Raise a GeometryError unless what was sent fits a receiver's cache."""
    (batch, n), (rows, tokens) = (cache.keys.shape[1:4:2] for cache in (sent, receiver))
    if batch != rows or n not in (1, tokens):
        raise GeometryError(
            f"message of {batch} examples × {n} tokens does not fit a receiver cache of {rows} × {tokens}; the batch "
            "must be equal, and the tokens 1 or equal."
        )


def local_folder(location: str | Path, revision: str | None = None) -> Path:
    """``location`` as a folder here: itself, or where the files of ``owner/name`` were fetched to from the hub.

    Raises:
        AdapterFileError: If it is no folder here and cannot be fetched.
    """
    if is_hub_id(str(location)):
        return fetch(str(location), revision, (CONFIG_FILE, WEIGHTS_FILE))
    return Path(location)


def _read_tensors(file: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``file`` if they are exactly the expected ones."""
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
            if missing or extra:
                raise AdapterFileError(f"{file}: missing tensors {missing}, unexpected tensors {extra}.")
            for name in sorted(names):
                shape = tuple(stored.get_slice(name).get_shape())
                if shape != tuple(expected[name].shape):
                    raise AdapterFileError(f"{file}: {name} has shape {shape}, expected {tuple(expected[name].shape)}.")
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{file} is damaged or no safetensors file: {error}") from error
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise AdapterFileError(f"{file}: tensors must share one float dtype, found {sorted(map(str, dtypes))}.")
    return tensors
