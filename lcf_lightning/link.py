"""`Link`: two frozen models and an adapter between them; tensors only, no text.

A training step, an evaluation arm and `Channel.receive` all run the same prefill → pool → fuse → continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, ModelIdentity
from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import GeometryError, ModelError, SettingError
from lcf_lightning.host import Extent
from lcf_lightning.models.cache import KVCache, continue_from, extend, prefill
from lcf_lightning.models.continuation import Continuation
from lcf_lightning.models.geometry import KV
from lcf_lightning.models.loading import FrozenModel, geometry_of, load_frozen
from lcf_lightning.models.rotary import Rotary
from lcf_lightning.models.spec import ModelSpec
from lcf_lightning.models.store import PrefillSettings, PrefillStore
from lcf_lightning.selection import most_attended

Role = Literal["sharer", "receiver"]


def load_pair(
    sharer: ModelSpec, receiver: ModelSpec, device: torch.device | str = "cpu"
) -> tuple[FrozenModel, FrozenModel]:
    """Both frozen models; loaded once where they are the same."""
    loaded = load_frozen(sharer, device)
    return loaded, loaded if sharer == receiver else load_frozen(receiver, device)


class Side(NamedTuple):
    """A frozen model as one side of a link.

    Attributes:
        model: The model.
        prefill: From prompts, padded on the left, to a `KVCache`: computed, or kept.
        rotary: Its rotary embedding; None where keys stay rotated.
    """

    model: FrozenModel
    prefill: Callable[[Tokens], KVCache]
    rotary: Rotary | None

    @classmethod
    def of(cls, model: FrozenModel, unrotate: bool, prefills: PrefillSettings | None) -> Side:
        """A model's side; its rotary embedding is tried out where keys are to be un-rotated."""
        rotary = Rotary(model.model) if unrotate else None
        if prefills is None:
            return cls(model, lambda row: prefill(model.model, row.ids, row.mask, largest=row.largest), rotary)
        store = PrefillStore(prefills, model)
        return cls(model, lambda row: store.read(row.ids, row.mask), rotary)


class Link:
    """A sharer, a receiver and the adapter between them: prefill, pool, fuse, continue.

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
        roles: tuple[tuple[Role, FrozenModel | None], ...] = (("sharer", sharer), ("receiver", receiver))
        models: dict[Role, FrozenModel] = {role: model for role, model in roles if model is not None}
        for role, model in models.items():
            _require(adapter.config, role, model)
        unrotate = adapter.config.settings.unrotate_keys
        sides = {id(model): Side.of(model, unrotate, prefills) for model in models.values()}  # one where both are one
        self.sides = {role: sides[id(model)] for role, model in models.items()}

    def side(self, role: Role) -> Side:
        """One side.

        Raises:
            SettingError: If that model is not loaded.
        """
        if role not in self.sides:
            raise SettingError(f"this channel has no {role}; load it with sides='both' or sides={role!r}.")
        return self.sides[role]

    @property
    def sharer(self) -> FrozenModel:
        """The model that has read something."""
        return self.side("sharer").model

    @property
    def receiver(self) -> FrozenModel:
        """The model that answers."""
        return self.side("receiver").model

    @property
    def shared(self) -> bool:
        """Whether both models read the same text (LCF, C2C); else they read different ones (LCF-X)."""
        return self.adapter.pooler is None

    def without_prefills(self) -> Link:
        """The same pair and adapter, every prefill computed."""
        models = {role: side.model for role, side in self.sides.items()}
        return self if self.prefills is None else Link(models.get("sharer"), models.get("receiver"), self.adapter)

    def read_sharer(self, tokens: Tokens) -> KVCache:
        """The sharer's prefill, and what of it is sent."""
        return self.select(self.prefill_sharer(tokens), tokens)

    def prefill_sharer(self, tokens: Tokens) -> KVCache:
        """The sharer's prefill."""
        return self.side("sharer").prefill(tokens)

    def select(self, sharer: KVCache, tokens: Tokens) -> KVCache:
        """The sharer's prefill, and which of its tokens are sent, where that is not all (``prompts.send_tokens``)."""
        if tokens.send is None:
            return sharer
        sent = most_attended(self.sharer.model, sharer, tokens.ids, tokens.spans, tokens.send, tokens.asking)
        return replace(sharer, sent=sent)

    def read_receiver(self, tokens: Tokens) -> KVCache:
        """The receiver's prefill of all prompt tokens but the last."""
        return self.side("receiver").prefill(tokens)

    def pool(self, sharer: KVCache, index: Tensor, extent: Extent | None = None) -> Summaries:
        """What the adapter takes from the sharer's cache, see `CacheAdapter.pool`."""
        return self.adapter.pool(self._mapped_layers(sharer, len(index)), sharer.spans_sent(index), extent)

    def summarise(self, sharer: KVCache, index: Tensor, extent: Extent | None = None) -> Summaries:
        """The message as it travels, see `CacheAdapter.summarise`: span summaries, or aligned tokens."""
        return self.adapter.summarise(self._mapped_layers(sharer, len(index)), sharer.spans_sent(index), extent)

    def merge(self, message: Summaries) -> Summaries:
        """The message as the fuser takes it, see `CacheAdapter.merge`."""
        return self.adapter.merge(message)

    def _mapped_layers(self, sharer: KVCache, batch: int) -> KV:
        """The sharer's layers, the tokens of several sharers of an example one after the other."""
        kv = sharer.read(self.adapter.config.sharer_layers, self.side("sharer").rotary)
        layers, rows, heads, tokens, size = kv.keys.shape
        if rows == batch:
            return kv
        grouped = (layers, batch, rows // batch, heads, tokens, size)
        return KV(*(part.reshape(grouped).transpose(2, 3).reshape(layers, batch, heads, -1, size) for part in kv))

    def fuse(
        self,
        receiver: KVCache,
        message: Summaries,
        temperature: float | None = None,
        question: Tokens | None = None,
        opened: Tensor | None = None,
        start: int = 0,
    ) -> KVCache:
        """The receiver's cache with the message in it.

        Args:
            receiver: Of what it has read so far.
            message: What `pool` or `merge` returned.
            temperature: The gates' in training.
            question: What it will read next, but the last prompt token; only to see whether there is room for it.
            opened: The layers to compute, see `CacheAdapter.forward`.
            start: How many of the cache's first tokens an edit leaves as they are, or a message comes behind.
        """
        delta = self.delta(receiver, message, temperature, question, opened, start)
        return self.edit(receiver, self.adapter.config.receiver_layers, delta, message.present, start)

    def delta(
        self,
        receiver: KVCache,
        message: Summaries,
        temperature: float | None = None,
        question: Tokens | None = None,
        opened: Tensor | None = None,
        start: int = 0,
    ) -> KV:
        """What the message adds to the receiver's cache, or puts before it, see `CacheAdapter.forward`.

        Raises:
            GeometryError: If they do not fit each other, or the receiver would not see what is put before its prompt.
        """
        if self.adapter.prepends:
            asked = receiver.mask[:, start:]
            asked = asked if question is None else torch.cat([asked, question.mask], dim=1)
            self._require_room(asked, message.present)
        layers, rotary = self.adapter.config.receiver_layers, self.side("receiver").rotary
        kv = receiver.read(layers, rotary, start) if self.adapter.fuser.reads_receiver else None
        delta: KV = self.adapter(message, kv, temperature, opened)
        return delta

    def edit(self, receiver: KVCache, layers: tuple[int, ...], delta: KV, present: Tensor, start: int = 0) -> KVCache:
        """The receiver's cache with ``delta`` of some layers in it, which is that of a message's ``present`` parts."""
        rotary = self.side("receiver").rotary
        if not self.adapter.prepends:
            return receiver.edit(layers, delta, rotary, start)
        assert rotary is not None, "AdapterSettings asks for unrotate_keys"
        return receiver.prepend(layers, delta, present, rotary, start)

    def _require_room(self, prompt: Tensor, present: Tensor) -> None:
        """Refuse tokens before the receiver's own that its prompt's last token would not see; both given as masks."""
        model = self.receiver
        limit = model.family.token_limit(model.config, self.adapter.config.receiver_layers)
        if limit is None or present.shape[1] + prompt.shape[1] < limit:  # known without a look at the device
            return
        needed = int((present.sum(1) + prompt.sum(1)).max()) + 1
        if needed > limit:
            raise GeometryError(
                f"pooler={self.adapter.config.settings.pooler}: message and prompt are {needed} tokens, and "
                f"{model.spec.path!r} sees one within {limit} only; send fewer spans, give a shorter prompt (in "
                "training: max_sharer_tokens, max_receiver_tokens), or take pooler=span."
            )

    def read_on(self, receiver: KVCache, more: Tokens, hidden: int = 0) -> KVCache:
        """The receiver's cache when it has read more tokens, if there are any; gradients flow into it.

        So many of the cache's last tokens are ``hidden`` from these.
        """
        if not more.ids.shape[1]:
            return receiver
        return extend(self.receiver.model, receiver, more.ids, more.mask, hidden)

    def continuation(
        self, cache: KVCache, last: Tensor, answers: Tensor, answer_mask: Tensor, role: Role = "receiver"
    ) -> Continuation:
        """What is said on a cache as an answer is read.

        Args:
            cache: A cache of all prompt tokens but the last.
            last: ``[batch, 1]``, int64, the last prompt token.
            answers: ``[batch, tokens]``, int64, padded on the right.
            answer_mask: ``[batch, tokens]``, bool.
            role: Whose cache and tokens these are.

        Returns:
            Of ``tokens`` tokens: what is said in place ``i`` predicts ``answers[:, i]``.
        """
        ids = torch.cat([last, answers[:, :-1]], dim=1)
        return continue_from(self.side(role).model.model, cache, ids, answer_mask)


def identity_of(spec: ModelSpec) -> ModelIdentity:
    """What an adapter says of a model, whose weights are not loaded: they have no fingerprint yet."""
    return ModelIdentity(spec.path, spec.revision, geometry_of(spec), spec.dtype, spec.quantization)


def spec_of(model: ModelIdentity) -> ModelSpec:
    """How the model that an adapter names is loaded."""
    return ModelSpec(model.path, model.revision, model.dtype, model.quantization)


def held_alike(made_for: ModelIdentity, model: FrozenModel) -> bool:
    """Whether a model is in memory as the adapter's was in training: only then are equal weights equal bits."""
    return (made_for.dtype, made_for.quantization) == (model.spec.dtype, model.spec.quantization)


def _require(config: AdapterConfig, role: Role, model: FrozenModel) -> None:
    """Refuse a model that is not the one an adapter was made for, as far as that can be told."""
    config.require(role, model.geometry)
    made_for: ModelIdentity = getattr(config, role)
    if made_for.fingerprint is None or not held_alike(made_for, model):
        return
    if made_for.fingerprint not in (model.fingerprint, model.weights_fingerprint):  # adapters of 0.1.0 know the latter
        raise ModelError(
            f"{role} path={model.spec.path!r} has other weights, or another tokenizer, than the {role} of this adapter "
            f"({made_for.path}): fingerprint {model.fingerprint}, expected {made_for.fingerprint}."
        )
