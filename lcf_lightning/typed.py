"""Data from files, which may come from anywhere, checked against the dataclass that it is to become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lcf_lightning.errors import SettingError

T = TypeVar("T")
MAX_JSON = 2**20
"""Bytes of a JSON file that is read at all."""
_LARGEST, _DEEPEST = 2**53, 32  # what JSON's numbers hold exactly; more levels than any of our files has
_KINDS = {
    bool: "true or false", int: "a whole number", float: "a finite number", str: "text", tuple: "a list",
    list: "a list", dict: "a table", NoneType: "null",
}  # fmt: skip


def read_json(file: Path, finite: bool = True) -> Any:
    """The content of a JSON file of bounded size and depth, without numbers that are not finite.

    Args:
        file: The file.
        finite: Whether ``NaN`` and ``Infinity`` are refused; else they are read as null.

    Raises:
        SettingError: If it is anything else.
        OSError: If it cannot be read.
    """
    with file.open("rb") as stored:
        return parse_json(stored.read(MAX_JSON + 1), finite)


def parse_json(content: bytes, finite: bool = True) -> Any:
    """What `read_json` gives of a file's content.

    Raises:
        SettingError: Likewise.
    """
    if len(content) > MAX_JSON:
        raise SettingError(f"it is longer than {MAX_JSON:,} bytes.")
    try:
        data = json.loads(content.decode(), parse_constant=_refuse if finite else lambda _: None)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"it is no JSON of this kind: {error}.") from error
    _require_plain(data)
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _require_plain(value: Any, levels: int = _DEEPEST) -> None:
    """Raise a SettingError unless every number is of a usual size, every text can be written, and the depth bounded."""
    if isinstance(value, dict | list):
        if not levels:
            raise SettingError(f"it is nested deeper than {_DEEPEST} levels.")
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _require_plain(inner, levels - 1)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise SettingError(f"{value!r:.80} holds a character that is none.")
    elif type(value) is int and abs(value) > _LARGEST:
        raise SettingError("it holds a whole number beyond 2^53.")


def from_table(kind: type[T], data: Any, name: str) -> T:
    """A dataclass made of a table of its fields, each of the type that it is annotated with, nested ones likewise.

    Args:
        kind: The dataclass.
        data: JSON data.
        name: What ``data`` is called in errors.

    Raises:
        SettingError: If a field is missing, unknown or of another type; or whatever the dataclass itself raises.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"{name}={data!r:.80} must be a table")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(data.keys() - known.keys())
    if unknown:
        raise SettingError(f"{name} has unknown fields {unknown!r:.80}")
    missing = [
        field.name
        for field in known.values()
        if field.default is MISSING and field.default_factory is MISSING and field.name not in data
    ]
    if missing:
        raise SettingError(f"{name} has no {', '.join(missing)}")
    types = _types(kind)  # type: ignore[arg-type]
    return kind(**{field: _value(types[field], value, f"{name}.{field}") for field, value in data.items()})


def from_known(kind: type[T], data: Mapping[str, Any], name: str) -> T:
    """`from_table` of a table that may hold more: of the fields that ``kind`` has."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return from_table(kind, {name: value for name, value in data.items() if name in names}, name)


def _value(hint: Any, value: Any, name: str) -> Any:
    """``value`` as a field of this annotation holds it."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        origin, inner = get_origin(option) or option, get_args(option)
        if is_dataclass(option) and isinstance(option, type):
            return from_table(option, value, name)
        if origin in (tuple, list) and isinstance(value, list | tuple):
            return origin(_value(inner[0], each, f"{name}[{place}]") for place, each in enumerate(value))
        if origin is dict and isinstance(value, dict):
            return {key: _value(inner[1], each, f"{name}.{key}") for key, each in value.items()}
        if option is Any or _is(origin, value):
            return value
    raise SettingError(f"{name}={value!r:.80} must be {' or '.join(_KINDS[get_origin(o) or o] for o in options)}")


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is(kind: type, value: object) -> bool:
    if isinstance(value, bool):  # which Python takes for a whole number
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
