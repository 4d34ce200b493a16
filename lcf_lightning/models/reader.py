"""`Reader`: a frozen model as one side of a channel."""

from __future__ import annotations

from functools import partial

from lcf_lightning.models.cache import Rotary, prefill
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.store import PrefillSettings, PrefillStore


class Reader:
    """A frozen model that turns prompts into caches.

    Args:
        model: The model.
        unrotate: Whether keys are taken out of its caches un-rotated.
        prefills: Where prefills are kept and looked for; null to compute every one.

    Attributes:
        read: From token ids and mask, ``[batch, tokens]``, padded on the left, to a `KVCache`.
        rotary: Its rotary embedding; None where keys stay rotated.

    Raises:
        ModelError: If keys are to be un-rotated and the model's rotary embedding does not allow it.
    """

    def __init__(self, model: FrozenModel, unrotate: bool, prefills: PrefillSettings | None) -> None:
        self.model = model
        self.rotary = Rotary(model.model) if unrotate else None
        self.read = partial(prefill, model.model) if prefills is None else PrefillStore(prefills, model).read
