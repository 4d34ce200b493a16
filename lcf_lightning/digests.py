"""Digests of tensors: whether two are the same, bit for bit, wherever they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor


def tensor_digest(tensor: Tensor) -> str:
    """128-bit BLAKE2b of a tensor's dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """128-bit BLAKE2b of named tensors, whatever their order, in hexadecimal."""
    lines = [f"{name} {tensor_digest(tensor)}\n" for name, tensor in sorted(tensors.items())]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def is_digest(value: object) -> bool:
    """Whether a value, of a file from anywhere, is a 128-bit digest in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None
