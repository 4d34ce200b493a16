"""`Pooler` and `Fuser`: what an adapter is made of. Each is one class in one file, in this package or in a user's own.

A part is chosen in a config by its alias (``span``) or by its class path, with settings of its own, and says of itself
what the rest of the package must know. No other file lists parts by name.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from lcf_lightning.discovery import class_path, in_package, subclasses
from lcf_lightning.errors import LCFError, SettingError, reason
from lcf_lightning.host import Extent
from lcf_lightning.models.geometry import KV, Geometry


class Summaries(NamedTuple):
    """What the receiver is given of one sharer or of several.

    Attributes:
        kv: ``[layers, batch, heads, n, head size]``, of the sharer's heads: n span summaries, their pool (n = 1), or,
            where both models read the same text, the sharer's tokens that the receiver's n tokens are aligned with. Of
            the receiver's heads where the pooler `carries`. Finite also where absent.
        present: ``[batch, n]``, bool, False on padding of spans. Of aligned tokens all are marked: which of them are
            padding the receiver's own mask says.
    """

    kv: KV
    present: Tensor


@dataclass(frozen=True)
class PartShape:
    """What a part is built for.

    Attributes:
        layers: Number of edited layers; a parameter's first dimension counts them.
        sharer: The sharer's geometry.
        receiver: The receiver's geometry.
        d: Bottleneck or hidden width of the fuser.
        dropout: Dropout of the fuser in training.
        prepends: Whether the message becomes tokens before the receiver's own; then there is no token of the receiver
            for a fuser to read.
        same_model: Whether sharer and receiver are one model, so that what the one has cached the other can read.
        norm_eps: Of the RMSNorm of its blocks, see `LayerFFN`.
    """

    layers: int
    sharer: Geometry
    receiver: Geometry
    d: int
    dropout: float = 0.0
    prepends: bool = False
    same_model: bool = False
    norm_eps: float | None = 1e-6


class Pooler(nn.Module, ABC):
    """From a sharer's cache to span summaries: what travels in a message of LCF-X.

    ``__init__`` takes a `PartShape` and then settings of its own, which a config gives as ``init_args``. The first
    dimension of every parameter and buffer counts the edited layers.

    Attributes:
        alias: A short name for configs, of the parts of this package.
        label: What tables and model cards call an adapter with this pooler; ``{fuser}`` is the fuser's own label.
        prepends: Whether a message becomes tokens before the receiver's own (True), or edits these (False).
        carries: Whether these tokens are in the receiver's shape already, so that the fuser only corrects them. Such a
            pooler is given all of the sharer's layers, and fills all of the receiver's.
        poolable: Whether `merge` makes one vector of all spans, so that a message can be sent pooled.
    """

    alias: ClassVar[str | None] = None
    label: ClassVar[str]
    prepends: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    poolable: ClassVar[bool] = False

    @property
    def unfitted(self) -> bool:
        """Whether `fit` must be called before training: never, but for poolers that start from a closed form."""
        return False

    def fit(self, sharer: KV, receiver: KV) -> None:
        """Set what has a closed form, from what both models have cached of the same tokens.

        Args:
            sharer: ``[sharer layers, 1, sharer heads, tokens, sharer head size]``, keys un-rotated.
            receiver: ``[receiver layers, 1, receiver heads, tokens, receiver head size]``, likewise, of the tokens that
                stand where these stand.
        """

    def standardised(self, message: KV) -> KV:
        """A message as the fuser that corrects it is given it; where it `carries`."""
        return message

    def corrected(self, message: KV, residual: KV) -> KV:
        """A message with the fuser's gated residual in it; where it `carries`."""
        return KV(message.keys + residual.keys, message.values + residual.values)

    @abstractmethod
    def summarise(self, cache: KV, spans: Tensor, extent: Extent | None = None) -> Summaries:
        """Summarise each span of a sharer's cache.

        Args:
            cache: ``[layers, batch, kv_heads, tokens, head_dim]``: the layers that the edited ones read; where it
                `carries`, all of the sharer's.
            spans: ``[batch, tokens]``, int64, the span of each token, -1 for none.
            extent: How many spans and tokens in spans there are, where whoever wrote the prompts has counted them: a
                look at ``spans`` would wait for the device. Every row is known to have a span then. Null to look.

        Raises:
            GeometryError: If ``spans`` has not the cache's batch and tokens, or a row has no span.
        """

    def merge(self, summaries: Summaries) -> Summaries:
        """Summaries of one sharer or of several, pooled as far as they can be before the receiver is known.

        A pooler that does not `prepends` must leave one vector here: it edits every token of the receiver.
        """
        return summaries


class Fuser(nn.Module, ABC):
    """From a message to what it adds to a receiver's cache, or puts before it: ``α ⊙ Δ``, before the gates.

    ``__init__`` takes a `PartShape` and then settings of its own, which a config gives as ``init_args``. All layers are
    computed at once; the first dimension of every parameter and buffer counts them.

    Attributes:
        alias: A short name for configs, of the parts of this package.
        label: What tables and model cards call it.
        reads_receiver: Whether `forward` is given the receiver's cache; never where the message `prepends`.
    """

    alias: ClassVar[str | None] = None
    label: ClassVar[str]
    reads_receiver: bool

    @property
    @abstractmethod
    def last_maps(self) -> tuple[nn.Module, ...]:
        """The maps that write Δ; zero at first where ``zero_init`` is set."""

    @abstractmethod
    def forward(self, sharer: KV, receiver: KV | None) -> KV:
        """The residual to add, or the tokens to put before.

        Args:
            sharer: ``[layers, batch, heads, tokens or 1, head size]``: the message, see `Summaries`.
            receiver: ``[layers, batch, receiver heads, tokens, receiver head size]``; None where it is not read.

        Returns:
            ``[layers, batch, receiver heads, tokens, receiver head size]``.
        """


PartT = TypeVar("PartT", Pooler, Fuser)
PartName = str | dict[str, Any]
"""A part as a config names it: its alias or class path, or ``class_path`` and ``init_args``, its own settings."""


def split_name(part: PartName) -> tuple[str, dict[str, Any]]:
    """Alias or class path, and the part's own settings.

    Raises:
        SettingError: If ``part`` holds anything else.
    """
    if isinstance(part, str):
        return part, {}
    if not isinstance(part, dict):  # of a file from elsewhere
        raise SettingError(f"a part must be a name, or class_path and init_args; not {part!r:.80}.")
    unknown = part.keys() - {"class_path", "init_args"}
    path, arguments = part.get("class_path"), part.get("init_args") or {}
    if unknown or not isinstance(path, str) or not isinstance(arguments, dict):
        raise SettingError(f"a part must be a name, or class_path and init_args; not {part!r:.80}.")
    return path, arguments


def short_name(base: type[PartT], part: PartName) -> PartName:
    """``part`` in the form that is saved: its alias where it has one, and ``init_args`` only where there are any."""
    path, arguments = split_name(part)
    kind = known_parts(base).get(path)
    name = (_alias(kind) if kind is not None else None) or path
    return {"class_path": name, "init_args": arguments} if arguments else name


def known_parts(base: type[PartT]) -> dict[str, type[PartT]]:
    """Every part that has been imported, by class path and by alias."""
    parts: dict[str, type[PartT]] = {}
    for part in subclasses(base):
        names = (class_path(part), _alias(part))
        parts |= {name: part for name in names if name is not None}
    return parts


def _alias(part: type[Pooler] | type[Fuser]) -> str | None:
    """A part's short name; only those of this package have one, so that no import changes what a config means."""
    return part.alias if in_package(part) else None


def _why(base: type, path: str) -> str | None:
    """Why a class that is there is no part; None where it is not there."""
    module, _, name = path.rpartition(".")
    found = vars(sys.modules[module]).get(name)  # to ask the module for it could import something
    if not isinstance(found, type):
        return None
    if not issubclass(found, base):
        return f": it is no subclass of {base.__name__}."
    lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    return f": it lacks {lacking}." if lacking else f"; did you mean {class_path(found)}?"


def part_class(base: type[PartT], part: PartName) -> type[PartT]:
    """The class of a part, if it has been imported. Nothing is imported here: an adapter may come from anywhere.

    Raises:
        SettingError: If there is no such part, or it does not take the settings that are given.
    """
    setting, parts = base.__name__.lower(), known_parts(base)
    path, arguments = split_name(part)
    module, _, name = path.rpartition(".")
    if path not in parts and module in sys.modules:
        close = get_close_matches(path, parts, 1)
        meant = f"; did you mean {close[0]}?" if close else "."
        why = _why(base, path) or meant
        raise SettingError(f"{setting}={path!r}: module {module} has no {base.__name__} {name}{why}")
    if path not in parts:
        aliases = ", ".join(sorted(name for name in parts if "." not in name))
        raise SettingError(
            f"{setting}={path!r} must be {aliases}, or the class path of a {base.__name__} whose module has been "
            "imported; import it first (on the command line: --modules MODULE)."
        )
    taken = list(inspect.signature(parts[path]).parameters)[1:]  # behind the shape
    unknown = sorted(arguments.keys() - set(taken))
    if unknown:
        raise SettingError(
            f"init_args of {setting}={path!r} hold {', '.join(unknown)}; it takes {', '.join(taken) or 'none'}."
        )
    return parts[path]


def build_part(base: type[PartT], part: PartName, shape: PartShape) -> PartT:
    """A part with random weights; errors as `part_class`."""
    make: Any = part_class(base, part)
    path, arguments = split_name(part)
    try:
        built: PartT = make(shape, **arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, LCFError):
            raise
        raise SettingError(f"init_args of {base.__name__.lower()}={path!r}: {reason(error)}.") from error
    for name, tensor in (*built.named_parameters(), *built.named_buffers()):
        if tensor.shape[:1] != (shape.layers,):
            raise SettingError(
                f"{base.__name__.lower()}={path!r}: the first dimension of {name} {tuple(tensor.shape)} must count the "
                f"{shape.layers} edited layers, so that layers can be taken out."
            )
    return built
