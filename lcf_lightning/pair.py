"""`Pair`: two frozen models and an adapter between them; the one path from prompts to an answer.

A training step, an evaluation arm and `Channel.receive` all run the same prefill → pool → fuse → continue.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, ModelIdentity
from lcf_lightning.adapter.poolers import Sent
from lcf_lightning.data.batch import Collator, SharedCollator
from lcf_lightning.data.prompts import PromptEncoder, PromptSettings
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import GeometryError, ModelError, SettingError
from lcf_lightning.models.cache import KVCache, continue_from, generate
from lcf_lightning.models.geometry import KV, token_limit
from lcf_lightning.models.loading import FrozenModel, ModelSpec, load_frozen, load_tokenizer
from lcf_lightning.models.reader import Reader
from lcf_lightning.models.store import PrefillSettings

Role = Literal["sharer", "receiver"]


def load_pair(
    sharer: ModelSpec, receiver: ModelSpec, device: torch.device | str = "cpu"
) -> tuple[FrozenModel, FrozenModel]:
    """Both frozen models; loaded once where they are the same."""
    loaded = load_frozen(sharer, device)
    return loaded, loaded if sharer == receiver else load_frozen(receiver, device)


class Pair:
    """A sharer, a receiver and the adapter between them, as training and evaluation use them.

    Args:
        sharer: The model that has read something; None where messages are only received.
        receiver: The model that answers; None where messages are only sent.
        adapter: What was trained for this pair; it may be in another dtype than the models.
        prefills: Where prefills are kept and looked for; null to compute every one.

    Raises:
        GeometryError: If the models are not the pair the adapter was made for.
        ModelError: If a model has other weights than the adapter was made for, or keys are to be un-rotated and its
            rotary embedding does not allow it.
    """

    def __init__(
        self,
        sharer: FrozenModel | None,
        receiver: FrozenModel | None,
        adapter: CacheAdapter,
        prefills: PrefillSettings | None = None,
    ) -> None:
        self.adapter, self.prefills = adapter, prefills
        unrotate = adapter.config.settings.unrotate_keys
        models: dict[Role, FrozenModel | None] = {"sharer": sharer, "receiver": receiver}
        for role, model in models.items():
            if model is not None:
                _require(adapter.config, role, model)
        readers = {id(model): Reader(model, unrotate, prefills) for model in models.values() if model is not None}
        self._tokenizers: dict[Role, PreTrainedTokenizerBase] = {}  # of sides that are not loaded
        self._readers = {role: readers[id(model)] for role, model in models.items() if model is not None}

    @property
    def sharer(self) -> FrozenModel:
        """The model that has read something."""
        return self._reader("sharer").model

    @property
    def receiver(self) -> FrozenModel:
        """The model that answers."""
        return self._reader("receiver").model

    @property
    def shared(self) -> bool:
        """Whether both models read the same text (LCF, C2C); else they read different ones (LCF-X)."""
        return self.adapter.pooler is None

    def collator(self, prompts: PromptSettings) -> Collator:
        """Writes prompts for this pair."""
        kind = SharedCollator if self.shared else Collator
        return kind.of(prompts, self._tokenizer("sharer"), self._tokenizer("receiver"))

    def encoder(self, prompts: PromptSettings, role: Role) -> PromptEncoder:
        """Writes prompts for one side."""
        return PromptEncoder(self._reader(role).model.tokenizer, prompts, f"max_{role}_tokens")

    def _tokenizer(self, role: Role) -> PreTrainedTokenizerBase:
        """A side's tokenizer, also where its model is not loaded: alignment needs both."""
        if role in self._readers:
            return self._readers[role].model.tokenizer
        if role not in self._tokenizers:
            self._tokenizers[role] = load_tokenizer(spec_of(getattr(self.adapter.config, role)))
        return self._tokenizers[role]

    def read_sharer(self, tokens: Tokens) -> KVCache:
        """The sharer's prefill."""
        return self._reader("sharer").read(tokens.ids, tokens.mask)

    def read_receiver(self, tokens: Tokens) -> KVCache:
        """The receiver's prefill of all prompt tokens but the last."""
        return self._reader("receiver").read(tokens.ids, tokens.mask)

    def pool(self, sharer: KVCache, index: Tensor) -> Sent:
        """The message: what the adapter takes from the sharer's cache, see `CacheAdapter.pool`."""
        return self.adapter.pool(self._read_layers(sharer, len(index)), index)

    def summarise(self, sharer: KVCache, spans: Tensor) -> Sent:
        """The first half of `pool` where there is a pooler, see `CacheAdapter.summarise`."""
        return self.adapter.summarise(self._read_layers(sharer, len(spans)), spans)

    def _read_layers(self, sharer: KVCache, batch: int) -> KV:
        """The sharer's layers, the tokens of several sharers of an example one after the other."""
        kv = sharer.read(self.adapter.config.sharer_layers, self._reader("sharer").rotary)
        layers, rows, heads, tokens, size = kv.keys.shape
        if rows == batch:
            return kv
        grouped = (layers, batch, rows // batch, heads, tokens, size)
        return KV(*(side.reshape(grouped).transpose(2, 3).reshape(layers, batch, heads, -1, size) for side in kv))

    def fuse(self, receiver: KVCache, message: Sent, temperature: float | None = None) -> KVCache:
        """The receiver's cache with the message in it; ``temperature`` is the gates' in training."""
        layers = self.adapter.config.receiver_layers
        return self.edit(receiver, layers, self.delta(receiver, message, temperature), message.present)

    def delta(self, receiver: KVCache, message: Sent, temperature: float | None = None) -> KV:
        """What the message adds to the receiver's cache, or puts before it, see `CacheAdapter.forward`.

        Raises:
            GeometryError: If they do not fit each other, or the receiver would not see what is put before its prompt.
        """
        if self.adapter.prepends:
            self._require_room(receiver, message.present)
        layers, rotary = self.adapter.config.receiver_layers, self._reader("receiver").rotary
        read = None if self.adapter.prepends else receiver.read(layers, rotary)
        delta: KV = self.adapter(message, read, temperature)
        return delta

    def edit(self, receiver: KVCache, layers: tuple[int, ...], delta: KV, present: Tensor) -> KVCache:
        """The receiver's cache with ``delta`` of some layers in it, which is that of a message's ``present`` parts."""
        rotary = self._reader("receiver").rotary
        if not self.adapter.prepends:
            return receiver.edit(layers, delta, rotary)
        assert rotary is not None, "AdapterSettings asks for unrotate_keys"
        return receiver.prepend(layers, delta, present, rotary)

    def _require_room(self, receiver: KVCache, present: Tensor) -> None:
        """Refuse tokens before the receiver's own that its prompt's last token would not see."""
        limit = token_limit(self.receiver.model.config, self.adapter.config.receiver_layers)
        if limit is None or present.shape[1] + receiver.mask.shape[1] < limit:  # found without a look at the device
            return
        needed = int((present.sum(1) + receiver.mask.sum(1)).max()) + 1
        if needed > limit:
            raise GeometryError(
                f"pooler=prefix: message and prompt are {needed} tokens, and {self.receiver.spec.path!r} sees one "
                f"within {limit} only; send fewer spans, give a shorter prompt (in training: max_sharer_tokens, "
                "max_receiver_tokens), or take pooler=span."
            )

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

    def _reader(self, role: Role) -> Reader:
        if role not in self._readers:
            raise SettingError(f"this channel has no {role}; load it with sides='both' or sides={role!r}.")
        return self._readers[role]


def spec_of(model: ModelIdentity) -> ModelSpec:
    """How the model that an adapter names is loaded."""
    return ModelSpec(model.path, model.revision, model.dtype, model.quantization)


def _require(config: AdapterConfig, role: Role, model: FrozenModel) -> None:
    """Refuse a model that is not the one an adapter was made for, as far as that can be told."""
    config.require(role, model.geometry)
    made_for: ModelIdentity = getattr(config, role)
    held_alike = (made_for.dtype, made_for.quantization) == (model.spec.dtype, model.spec.quantization)
    if made_for.fingerprint is not None and held_alike and model.fingerprint != made_for.fingerprint:
        raise ModelError(
            f"{role} path={model.spec.path!r} has other weights than the {role} of this adapter ({made_for.path}): "
            f"fingerprint {model.fingerprint}, expected {made_for.fingerprint}."
        )
