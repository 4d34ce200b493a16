"""`AdapterConfig`: all that is needed to build an adapter, without any weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import lcf_lightning.adapter.fusers
import lcf_lightning.adapter.poolers  # noqa: F401 - the parts of this package are known from here on
from lcf_lightning.adapter.facts import require_facts
from lcf_lightning.adapter.parts import Fuser, PartName, PartShape, Pooler, part_class, short_name, split_name
from lcf_lightning.digests import is_digest
from lcf_lightning.discovery import import_home
from lcf_lightning.errors import AdapterFileError, GeometryError, SettingError
from lcf_lightning.models.geometry import MAX_SIZE, Geometry
from lcf_lightning.typed import from_table

FORMAT_VERSION = 1
MAX_PATH = 1024
"""Characters of a model's path or hub id."""
GATE_NOISES = ("logistic", "gumbel", "none")
_ALWAYS = {  # the settings of release 0.1.0, which enter every fingerprint
    "fuser", "pooler", "d", "layers", "layer_map", "gate_init", "unrotate_keys", "dropout", "zero_init"
}  # fmt: skip
_BEFORE = {"norm_eps": None}
"""Settings whose default is not what adapters did before they had them."""


def last_aligned(layer: int, sharer: int, receiver: int) -> int:
    """The sharer layer as far from the end as ``layer`` is; the first where there is none."""
    return max(0, layer + sharer - receiver)


def proportional(layer: int, sharer: int, receiver: int) -> int:
    """The sharer layer at the same relative depth, first to first and last to last."""
    return round(layer * (sharer - 1) / max(1, receiver - 1))


LAYER_MAPS: dict[str, Callable[[int, int, int], int]] = {"last_aligned": last_aligned, "proportional": proportional}


@dataclass(frozen=True)
class AdapterSettings:
    """What one chooses of an adapter; the models decide the rest.

    Attributes:
        fuser: ``lcf`` (the paper), ``c2c`` (its predecessor), or one of your own: the class path of a `Fuser`, or
            ``class_path`` and ``init_args``.
        pooler: For cross context: ``span``, where a message edits the receiver's tokens (LCF-X), ``prefix``, where it
            becomes tokens of its own before them (see `PrefixPooler`): for a sharer that does not know what will be
            asked; ``carry``, where the sharer's own tokens do (see `CarryPooler`); or one of your own, likewise. Null
            where both models read the same tokens.
        d: Bottleneck of the LCF fuser (even), or hidden width of the C2C fuser.
        layers: Receiver layers to edit; null for all of them.
        layer_map: ``last_aligned`` or ``proportional``: which sharer layer a receiver layer reads.
        gate_init: Initial gate logit. 0 is off under the hard gate; the paper starts LCF at 0 and LCF-X at +1.
        gate_noise: ``logistic``, ``gumbel`` or ``none``, see `LayerGates`.
        unrotate_keys: Take the rotary embedding off keys before pooling and fusing, and put it on the edit.
        dropout: Dropout of the fuser's FFN blocks in training (C2C's recipe: 0.1).
        norm_eps: What the RMSNorm of these blocks adds to the mean square, 1e-6 as in C2C's code. Null for the smallest
            step of the dtype at 1, as in adapters of earlier releases, whose files do not name it.
        zero_init: Start from no edit at all: the maps that write Δ are zero at first, as in LoRA. Where the receiver
            knows something already, training need not first repair what random edits broke. False: as the papers.
            With ``pooler=prefix`` the start is zero tokens, which is not quite nothing; with ``pooler=carry`` it is
            always so.
    """

    fuser: PartName = "lcf"
    pooler: PartName | None = "span"
    d: int = 128
    layers: tuple[int, ...] | None = None
    layer_map: str = "last_aligned"
    gate_init: float = 1.0
    gate_noise: str = "logistic"
    unrotate_keys: bool = True
    dropout: float = 0.0
    norm_eps: float | None = 1e-6
    zero_init: bool = False

    def __post_init__(self) -> None:
        checks = [
            (2 <= self.d <= MAX_SIZE and self.d % 2 == 0, f"d={self.d} must be even and between 2 and {MAX_SIZE}"),
            (self.layer_map in LAYER_MAPS, f"layer_map={self.layer_map!r} must be one of {', '.join(LAYER_MAPS)}"),
            (
                self.gate_noise in GATE_NOISES,
                f"gate_noise={self.gate_noise!r} must be one of {', '.join(GATE_NOISES)}",
            ),
            (math.isfinite(self.gate_init), f"gate_init={self.gate_init} must be finite"),
            (0 <= self.dropout < 1, f"dropout={self.dropout} must be in [0, 1)"),
            (
                self.norm_eps is None or 0 < self.norm_eps < math.inf,
                f"norm_eps={self.norm_eps} must be above 0 and finite, or null",
            ),
        ]
        wrong = [message for holds, message in checks if not holds]
        if wrong:
            raise SettingError("; ".join(wrong) + ".")
        object.__setattr__(self, "fuser", short_name(Fuser, self.fuser))
        if self.pooler is not None:
            object.__setattr__(self, "pooler", short_name(Pooler, self.pooler))

    @property
    def prepends(self) -> bool:
        """Whether a message becomes tokens before the receiver's own, and does not edit these."""
        return self.pooler is not None and part_class(Pooler, self.pooler).prepends

    @property
    def carries(self) -> bool:
        """Whether these tokens are the sharer's own, in the receiver's shape, which the fuser only corrects."""
        return self.pooler is not None and part_class(Pooler, self.pooler).carries

    @property
    def label(self) -> str:
        """What tables and model cards call such an adapter."""
        fuser = part_class(Fuser, self.fuser).label
        return fuser if self.pooler is None else part_class(Pooler, self.pooler).label.format(fuser=fuser)

    def deciding(self) -> dict[str, Any]:
        """What of these settings decides how messages are written and read; see `CacheAdapter.fingerprint`."""
        defaults = {field.name: field.default for field in fields(self)} | _BEFORE
        settings = {name: value for name, value in asdict(self).items() if name != "gate_noise"}  # of training only
        return {name: value for name, value in settings.items() if name in _ALWAYS or value != defaults[name]}

    def import_parts(self) -> None:
        """Import the modules of parts that are named by class path. For a user's own config only: a config is code."""
        for part in (self.fuser, self.pooler):
            if part is not None:
                path, _ = split_name(part)
                import_home(path, f"class_path={path!r}")

    def require_parts(self) -> None:
        """Raise a SettingError unless the parts have been imported and take these settings."""
        part_class(Fuser, self.fuser)
        if self.prepends and not self.unrotate_keys:
            raise SettingError(
                f"unrotate_keys=false must be true with pooler={self.pooler!r}, which moves the receiver's tokens."
            )
        if self.carries and self.layers is not None:
            raise SettingError(
                f"layers={list(self.layers)} must be null with pooler={self.pooler!r}: a token that is nothing in some "
                "layers is none that the receiver can read."
            )


@dataclass(frozen=True)
class ModelIdentity:
    """Which model an adapter belongs to.

    Attributes:
        path: Hub id, folder or file, as it was given.
        revision: Revision of a hub id.
        geometry: Its KV geometry.
        dtype: The dtype its caches had in training.
        quantization: Its quantization in training, or None.
        fingerprint: Digest of its weights and tokenizer, see `FrozenModel.fingerprint`; None where it is not known.
    """

    path: str
    revision: str | None
    geometry: Geometry
    dtype: str = "float32"
    quantization: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.fingerprint is not None and not is_digest(self.fingerprint):
            raise SettingError(f"fingerprint={self.fingerprint!r:.80} must be 32 hexadecimal digits, or null")
        if max(len(self.path), len(self.revision or "")) > MAX_PATH:
            raise SettingError(f"path={self.path!r:.80}, or its revision, must have at most {MAX_PATH} characters")

    def same(self, other: ModelIdentity) -> bool:
        """Whether both are one model, as far as its weights are known of both."""
        known = self.fingerprint is not None and other.fingerprint is not None
        return self == (other if known else replace(other, fingerprint=self.fingerprint))


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's settings and the pair it belongs to; saved as ``lcf_config.json``.

    Attributes:
        sharer: The model whose cache is read.
        receiver: The model whose cache is edited.
        settings: What was chosen.
        metadata: JSON-ready data that travels with the adapter, such as how prompts were written in training.
        format_version: Version of the folder's format.

    Raises:
        SettingError: If ``settings.layers`` names a layer the receiver lacks, or names one twice, or a part has not
            been imported.
        AdapterFileError: If the format version is unknown.
    """

    sharer: ModelIdentity
    receiver: ModelIdentity
    settings: AdapterSettings
    metadata: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise AdapterFileError(
                f"format_version={self.format_version!r} is unknown; this release reads version {FORMAT_VERSION}."
            )
        count = self.receiver.geometry.layers
        self.settings.require_parts()
        layers = self.receiver_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
            named = f"layers={list(layers)!r:.80}"
            raise SettingError(f"{named} must be ascending, distinct and between 0 and {count - 1}.")

    @property
    def receiver_layers(self) -> tuple[int, ...]:
        """The receiver layers that are edited."""
        chosen = self.settings.layers
        return tuple(range(self.receiver.geometry.layers)) if chosen is None else tuple(chosen)

    @property
    def sharer_layers(self) -> tuple[int, ...]:
        """For each edited receiver layer, the sharer layer it reads; all of them where the pooler carries."""
        if self.settings.carries:
            return tuple(range(self.sharer.geometry.layers))
        layer_map = LAYER_MAPS[self.settings.layer_map]
        sharer, receiver = self.sharer.geometry.layers, self.receiver.geometry.layers
        return tuple(layer_map(layer, sharer, receiver) for layer in self.receiver_layers)

    @property
    def shape(self) -> PartShape:
        """What pooler and fuser are built for."""
        return PartShape(
            layers=len(self.receiver_layers),
            sharer=self.sharer.geometry,
            receiver=self.receiver.geometry,
            d=self.settings.d,
            dropout=self.settings.dropout,
            norm_eps=self.settings.norm_eps,
            prepends=self.settings.prepends,
            same_model=(self.sharer.path, self.sharer.revision) == (self.receiver.path, self.receiver.revision),
        )

    @property
    def message(self) -> Geometry:
        """Layers, heads and head size of what travels."""
        carrier = self.receiver if self.settings.carries else self.sharer
        return replace(carrier.geometry, layers=len(self.receiver_layers))

    def require(self, role: str, geometry: Geometry) -> None:
        """Raise a GeometryError that names what differs if a model is not the ``sharer`` or ``receiver`` of this."""
        made_for: ModelIdentity = getattr(self, role)
        made_for.geometry.require_equal(geometry, f"{role} of this adapter ({made_for.path})")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AdapterConfig:
        """The config that `to_dict` wrote.

        Raises:
            AdapterFileError: If the format version is unknown, or a field is missing, unknown or of the wrong type.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise AdapterFileError(
                f"format_version={version!r:.80} is unknown; this release reads version {FORMAT_VERSION}."
            )
        try:
            settings, metadata = data.get("settings"), data.get("metadata")
            if isinstance(settings, dict):
                data = data | {"settings": _BEFORE | settings}
            if isinstance(metadata, dict):
                require_facts(metadata)
            return from_table(cls, data, "adapter")
        except (SettingError, GeometryError) as error:
            raise AdapterFileError(f"adapter config cannot be understood: {error!s:.1000}") from error
