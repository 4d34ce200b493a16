"""What the host knows and what it asks for, so that a hot loop never waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lcf_lightning.errors import GeometryError


class Extent(NamedTuple):
    """What shapes follow from an index into a sharer's tokens (`Batch.index`), as whoever wrote it on the host knows.

    Attributes:
        spans: Spans of the example that has most.
        tokens: Tokens that are sent of the example that sends most.
    """

    spans: int
    tokens: int

    @classmethod
    def of(cls, index: Tensor) -> Extent:
        """Of ``index``, where nobody knows it: this waits for the device."""
        return cls(int(index.max()) + 1, int((index >= 0).sum(1).max()))


def require_places(first: int, last: int, tokens: int) -> None:
    """Raise a GeometryError unless the least and the greatest place of an index are those of so many tokens."""
    if not 0 <= first <= last < tokens:
        raise GeometryError(f"index must hold places between 0 and {tokens - 1}; found {first} … {last}.")


class HostCopy:
    """A tensor on its way to the host. Making it waits for nothing; reading it, for the tensor alone.

    On CUDA what was asked of the device later goes on meanwhile.

    Args:
        tensor: What to copy; it has no gradient here.
    """

    def __init__(self, tensor: Tensor) -> None:
        on_cuda = tensor.device.type == "cuda"
        self._copy = tensor.detach().to("cpu", non_blocking=on_cuda)  # into pinned memory
        self._done = torch.cuda.Event() if on_cuda else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor, on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on ``device``; the host does not wait until it has come to a CUDA device."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")
