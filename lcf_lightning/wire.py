"""The tensors of a message as bytes: safetensors, in one of five dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from lcf_lightning.errors import MessageError
from lcf_lightning.models.spec import DTYPES

WIRE_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8", "int4": "U8"}
"""By the dtype of a message on the wire, its name in safetensors; two numbers of int4 share a byte."""
LARGEST = {"int8": 127, "int4": 7}
"""Of the whole numbers that each head's vector of each span is rounded to, in units of a scale of its own."""
MAX_TABLE = 1024
"""Bytes of the table of tensors that a payload begins with, at most; those that `encode` writes have up to 400."""
_KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I8": torch.int8, "U8": torch.uint8}
_SIDES = ("keys", "values")


def encode(keys: Tensor, values: Tensor, dtype: str) -> bytes:
    """Keys and values ``[layers, heads, spans, head_dim]`` as a safetensors file.

    Raises:
        MessageError: If a value is not finite in ``dtype``.
    """
    sides = zip(_SIDES, (keys, values), strict=True)
    tensors = {name: part for side, tensor in sides for name, part in _parts(side, tensor, dtype).items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor * _factor(name)).all()):
            raise MessageError(f"{name} of this message hold values that are not finite in {dtype}.")
    return save(tensors)


def decode(payload: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Keys and values of ``shape``, as `encode` wrote them; int8 and int4 as float32.

    Raises:
        MessageError: If these are not exactly those tensors, or one is not finite. No tensor has been made then.
    """
    if int.from_bytes(payload[:8], "little") > MAX_TABLE:  # before it is parsed, which costs far more than its length
        raise MessageError(f"message payload has a table of tensors longer than {MAX_TABLE} bytes.")
    try:
        parts = dict(deserialize(bytes(payload)))
    except SafetensorError as error:
        raise MessageError("message payload is no safetensors file.") from error
    width = (shape[-1] + 1) // 2 if dtype == "int4" else shape[-1]
    expected = dict.fromkeys(_SIDES, (WIRE_DTYPES[dtype], (*shape[:-1], width)))
    if dtype in LARGEST:
        expected |= {f"{side}_scale": ("F32", (*shape[:-1], 1)) for side in _SIDES}
    if {name: (part["dtype"], tuple(part["shape"])) for name, part in parts.items()} != expected:
        raise MessageError("message payload does not hold exactly the tensors of its header.")
    for name, (kind, _) in expected.items():
        if not _finite(kind, parts[name]["data"], _factor(name)):
            raise MessageError(f"{name} of this message hold values that are not finite.")
    tensors = {name: _tensor(parts[name], kind) for name, (kind, _) in expected.items()}
    keys, values = (_restored(tensors, side, shape[-1]) for side in _SIDES)
    return keys, values


def rounded(tensor: Tensor, dtype: str) -> Tensor:
    """What a receiver gets of a tensor of vectors that travels in ``dtype``, one of `LARGEST`; in float32."""
    return _restored(_parts("sent", tensor, dtype), "sent", tensor.shape[-1]).to(tensor.device)


def _parts(side: str, tensor: Tensor, dtype: str) -> dict[str, Tensor]:
    """One side as the tensors that travel."""
    tensor = tensor.detach().cpu()
    if dtype not in LARGEST:
        return {side: tensor.to(DTYPES[dtype], copy=True).contiguous()}  # safetensors refuses shared memory
    tensor, largest = tensor.float().contiguous(), LARGEST[dtype]
    scale = tensor.abs().amax(-1, keepdim=True) / largest
    whole = torch.where(scale > 0, tensor / scale, 0).round().clamp(-largest, largest).to(torch.int8)
    return {side: whole if dtype == "int8" else _packed(whole), f"{side}_scale": scale}


def _restored(tensors: Mapping[str, Tensor], side: str, size: int) -> Tensor:
    """One side of the tensors that travelled; vectors of ``size`` numbers."""
    tensor, scale = tensors[side], tensors.get(f"{side}_scale")
    if scale is None:
        return tensor
    whole = _unpacked(tensor)[..., :size] if tensor.dtype == torch.uint8 else tensor
    return whole.float() * scale


def _packed(whole: Tensor) -> Tensor:
    """Two numbers between -8 and 7 in each byte, the first in its lower half; a zero behind an odd number of them."""
    halves = pad(whole, (0, whole.shape[-1] % 2)).add(8).to(torch.uint8)
    return halves[..., ::2] | halves[..., 1::2] << 4


def _unpacked(packed: Tensor) -> Tensor:
    """What `_packed` was given, with the zero that it may have added."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8) - 8


def _factor(name: str) -> int:
    """What a number of this tensor is multiplied with at most."""
    return 128 if name.endswith("_scale") else 1


def _finite(kind: str, data: bytes, factor: int) -> bool:
    """Whether all numbers, times ``factor``, are finite; nothing is copied to a tensor."""
    if kind in ("I8", "U8"):
        return True
    if kind == "BF16":  # the upper half of a float32: all bits of the exponent set
        return not bool(np.any((np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80))
    numbers = np.frombuffer(data, "<f4" if kind == "F32" else "<f2")
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(numbers * numbers.dtype.type(factor)).all())


def _tensor(part: dict[str, Any], kind: str) -> Tensor:
    return torch.frombuffer(bytearray(part["data"]), dtype=_KINDS[kind]).reshape(part["shape"])
