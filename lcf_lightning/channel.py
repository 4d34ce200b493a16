"""`Channel`: two frozen models and an adapter between them; the one path from prompts to an answer.

A training step, an evaluation arm and `Channel.receive` all run the same prefill → pool → fuse → continue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.pruning import without_closed_layers
from lcf_lightning.data.batch import Collator, SharedCollator
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.data.tokens import Tokens, pad_left, split_last
from lcf_lightning.errors import AdapterFileError, GeometryError
from lcf_lightning.models.cache import KVCache, Rotary, continue_from, generate, prefill
from lcf_lightning.models.geometry import KV
from lcf_lightning.models.loading import FrozenModel, ModelSpec, geometry_of, load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore


def load_pair(
    sharer: ModelSpec, receiver: ModelSpec, device: torch.device | str = "cpu"
) -> tuple[FrozenModel, FrozenModel]:
    """Both frozen models; loaded once where they are the same."""
    loaded = load_frozen(sharer, device)
    return loaded, loaded if sharer == receiver else load_frozen(receiver, device)


def _reader(model: FrozenModel, prefills: PrefillSettings | None) -> Callable[[Tensor, Tensor], KVCache]:
    """From ids and mask to a model's cache."""
    return partial(prefill, model.model) if prefills is None else PrefillStore(prefills, model).read


class Channel:
    """A sharer, a receiver and the adapter between them.

    Args:
        sharer: The model that has read something.
        receiver: The model that answers.
        adapter: What was trained for this pair; it may live on another device or in another dtype than the models.
        prefills: Where prefills are kept and looked for; null to compute every one.

    Raises:
        GeometryError: If the models are not the pair the adapter was made for.
        ModelError: If keys are to be un-rotated and a model's rotary embedding does not allow it.

    Example:
        >>> channel = Channel.from_pretrained("runs/quickstart/adapter")
        >>> message = channel.send(["likes ada tea .", "owns bob lamp ."], question="likes ada")
        >>> channel.receive(message, question="likes ada")
        'tea'
    """

    def __init__(
        self,
        sharer: FrozenModel,
        receiver: FrozenModel,
        adapter: CacheAdapter,
        prefills: PrefillSettings | None = None,
    ) -> None:
        config = adapter.config
        config.require_geometry(sharer.geometry, receiver.geometry)
        self.sharer, self.receiver, self.adapter, self.prefills = sharer, receiver, adapter, prefills
        unrotate = config.settings.unrotate_keys
        self._sharer_rotary = Rotary(sharer.model) if unrotate else None
        self._receiver_rotary = Rotary(receiver.model) if unrotate else None
        self._read_sharer = _reader(sharer, prefills)
        self._read_receiver = self._read_sharer if receiver is sharer else _reader(receiver, prefills)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", revision: str | None = None
    ) -> Channel:
        """The channel of an adapter folder, or of ``owner/name`` on the hub at ``revision``.

        The two models are those the adapter names, in the dtypes it was trained with.

        Raises:
            AdapterFileError: If the folder is not a whole adapter.
            ModelError: If a model cannot be read.
            GeometryError: If a model is not the one the adapter was made for.
        """
        adapter = CacheAdapter.from_pretrained(folder, revision).to(device)
        config = adapter.config
        specs = [
            ModelSpec(model.path, model.revision, model.dtype, model.quantization)
            for model in (config.sharer, config.receiver)
        ]
        config.require_geometry(*(geometry_of(spec) for spec in specs))
        return cls(*load_pair(specs[0], specs[1], device), without_closed_layers(adapter))

    @property
    def shared(self) -> bool:
        """Whether both models read the same text (LCF, C2C); else they read different ones (LCF-X)."""
        return self.adapter.pooler is None

    @torch.no_grad()
    def send(self, passages: Sequence[str], question: str | None = None) -> KV:
        """What the sharer says of some passages.

        Args:
            passages: What it has read; each is a span (or is cut into windows, as in training).
            question: Shown to the sharer where it was in training. Where both models read the same text, what the
                receiver will be asked.

        Returns:
            The message, ``[layers, 1, heads, 1, head size]``; one token for each of the receiver's where both models
            read the same text.
        """
        collator, texts = self._collator(), tuple((passage,) for passage in passages)
        if self.shared:
            batch = collator.train([Example("message", question or "", ("",), texts, texts)])
            tokens, index = batch.sharer, batch.index
        else:
            shown = question if collator.sharer.settings.share_question else None
            tokens = pad_left([collator.sharer.prompt(texts, shown)], collator.sharer.pad_id)
            index = tokens.spans
        return self.pool(self.read_sharer(tokens.to(self.sharer.device)), index.to(self.sharer.device))

    @torch.no_grad()
    def receive(self, message: KV, question: str, passages: Sequence[str] = (), max_new_tokens: int = 32) -> str:
        """The receiver's answer, given a message and its own passages: the sharer's, where both read the same text.

        Raises:
            GeometryError: If both read the same text, and the message was sent of one of another length.
        """
        encoder = self._collator().receiver
        encoder = encoder.unlimited() if self.shared else encoder
        prompt = encoder.prompt([(passage,) for passage in passages], question)
        read, last = split_last([prompt], encoder.pad_id, self.receiver.device)
        if self.shared and message.keys.shape[3] != read.ids.shape[1]:
            raise GeometryError(
                f"a message of {message.keys.shape[3]} tokens for a prompt of {read.ids.shape[1]}: where both models "
                "read the same text, send and receive need the same passages and question."
            )
        return self.decode(self.fuse(self.read_receiver(read), message), last, max_new_tokens)[0]

    def _collator(self) -> Collator:
        try:
            settings = PromptSettings(**self.adapter.config.metadata.get("prompts", {}))
        except TypeError as error:
            raise AdapterFileError(f"metadata.prompts of this adapter cannot be understood: {error}") from error
        return self.collator(settings)

    def collator(self, prompts: PromptSettings) -> Collator:
        """Writes prompts for this pair."""
        kind = SharedCollator if self.shared else Collator
        return kind.of(prompts, self.sharer.tokenizer, self.receiver.tokenizer)

    def read_sharer(self, tokens: Tokens) -> KVCache:
        """The sharer's prefill."""
        return self._read_sharer(tokens.ids, tokens.mask)

    def read_receiver(self, tokens: Tokens) -> KVCache:
        """The receiver's prefill of all prompt tokens but the last."""
        return self._read_receiver(tokens.ids, tokens.mask)

    def pool(self, sharer: KVCache, index: Tensor) -> KV:
        """The message: what the adapter takes from the sharer's cache, see `CacheAdapter.pool`."""
        return self.adapter.pool(sharer.read(self.adapter.config.sharer_layers, self._sharer_rotary), index)

    def fuse(self, receiver: KVCache, message: KV, temperature: float | None = None) -> KVCache:
        """The receiver's cache, edited by the message; ``temperature`` is the gates' in training."""
        return self.edit(receiver, self.adapter.config.receiver_layers, self.delta(receiver, message, temperature))

    def delta(self, receiver: KVCache, message: KV, temperature: float | None = None) -> KV:
        """What the message adds to the receiver's cache, ``[layers, batch, heads, tokens, head size]``."""
        layers = self.adapter.config.receiver_layers
        delta: KV = self.adapter(message, receiver.read(layers, self._receiver_rotary), temperature)
        return delta

    def edit(self, receiver: KVCache, layers: tuple[int, ...], delta: KV) -> KVCache:
        """The receiver's cache with ``delta`` added to some layers."""
        return receiver.edit(layers, delta, self._receiver_rotary)

    def logits(
        self, cache: KVCache, last: Tensor, answers: Tensor, answer_mask: Tensor, reader: FrozenModel | None = None
    ) -> Tensor:
        """Logits of each answer token on an edited cache.

        Args:
            cache: The receiver's cache, of all prompt tokens but the last.
            last: ``[batch, 1]``, int64, the last prompt token.
            answers: ``[batch, tokens]``, int64, padded on the right.
            answer_mask: ``[batch, tokens]``, bool.
            reader: Whose cache and tokens these are; the receiver's by default.

        Returns:
            ``[batch, tokens, vocabulary]``, float32: position ``i`` predicts ``answers[:, i]``.
        """
        ids = torch.cat([last, answers[:, :-1]], dim=1)
        return continue_from((reader or self.receiver).model, cache, ids, answer_mask).float()

    def decode(self, cache: KVCache, last: Tensor, max_new_tokens: int, reader: FrozenModel | None = None) -> list[str]:
        """Greedy answers on an edited cache, up to the first end of sequence or line break."""
        reader = reader or self.receiver
        ids = generate(reader.model, cache, last, max_new_tokens, reader.stop_ids)
        texts: list[str] = reader.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip().split("\n")[0].strip() for text in texts]
