"""`Prefilled`: a receiver's prompt as it was read and edited by messages, for an engine that goes on from there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lcf_lightning.errors import MessageError, unread
from lcf_lightning.files import require_regular, write_file

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel
    from lcf_lightning.data.parsing import Question, Text
    from lcf_lightning.receiving import Received

PARAMETER = "lcf_prefilled"
"""The name among an engine's ``kv_transfer_params`` under which a request says which file it goes on from."""
_BLOCK_BYTES = 1 << 20
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False, repr=False)
class Prefilled:
    """What a receiver has read of its prompt, and heard: all tokens but the last, which the engine reads.

    Attributes:
        ids: ``[tokens + 1]``, int64: the prompt. A message that stands before it (``pooler`` prefix or carry) has
            tokens of its own here, too: their ids are the last one's and say nothing, their keys and values do.
        keys: ``[layers, tokens, kv_heads, head_dim]``, rotated to their places, in the receiver's dtype.
        values: The same shape and dtype.
        stop: Where the answer ends, besides the end of sequence; null for nowhere else.
    """

    ids: Tensor
    keys: Tensor
    values: Tensor
    stop: str | None = None

    def __post_init__(self) -> None:
        """Raise a MessageError unless these tensors fit each other and are finite."""
        sides = (self.keys, self.values)
        fit = (
            self.ids.dtype == torch.int64
            and self.ids.dim() == 1
            and len(self.ids) >= 2
            and all(side.dim() == 4 and side.shape == self.keys.shape for side in sides)
            and self.keys.shape[1] == len(self.ids) - 1
            and all(side.dtype == self.keys.dtype and side.dtype in _DTYPES for side in sides)
        )
        if not fit:
            shapes = ", ".join(f"{name} {tuple(side.shape)} {side.dtype}" for name, side in self._tensors().items())
            raise MessageError(
                f"a prefilled prompt has ids [tokens + 1], int64, keys and values [layers, tokens, kv_heads, "
                f"head_dim], of one dtype; not {shapes}."
            )
        if not all(bool(side.isfinite().all()) for side in sides):
            raise MessageError("this prefilled prompt holds values that are not finite.")

    def __repr__(self) -> str:
        layers, tokens, heads, size = self.keys.shape
        return f"Prefilled({tokens} tokens, {layers} layers of {heads} × {size}, {self.keys.dtype})"

    def _tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "keys": self.keys, "values": self.values}

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write ``DIGEST.safetensors`` into a folder that the engine reads, and say how to ask the engine.

        Returns:
            ``prompt``, ``kv_transfer_params`` and, where there is one, ``stop``, as vLLM's OpenAI-compatible
            ``/v1/completions`` takes them. The file may be deleted when no request that names it is open; two of the
            same content name the same.

        Raises:
            OSError: If the disk refuses.
        """
        written = save({name: tensor.contiguous() for name, tensor in self._tensors().items()})
        digest = hashlib.sha256(written).hexdigest()
        write_file(Path(folder) / f"{digest}.safetensors", lambda aside: aside.write_bytes(written))
        request: dict[str, Any] = {"prompt": self.ids.tolist(), "kv_transfer_params": {PARAMETER: digest}}
        return request if self.stop is None else {**request, "stop": [self.stop]}

    @classmethod
    def load(cls, folder: str | Path, digest: str) -> Prefilled:
        """What `save` wrote; ``stop`` stands in the request alone.

        Raises:
            MessageError: If there is no such file, or its bytes are not those that were written.
        """
        if not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None:
            raise MessageError(f"{PARAMETER}={digest!r:.80} must be 64 hexadecimal digits, a file's digest.")
        file = Path(folder) / f"{digest}.safetensors"
        try:
            require_regular(file)
            with file.open("rb") as stored:
                size = _size(stored, digest)  # in blocks: only what was written there is worth the memory
                stored.seek(0)
                written = stored.read(size)
        except (OSError, ValueError) as error:  # a path may be none
            raise MessageError(f"prefilled prompt {str(file)!r} cannot be read: {unread(error)}.") from error
        if hashlib.sha256(written).hexdigest() != digest:
            raise MessageError(f"prefilled prompt {file} does not hold what was written there.")
        try:
            tensors = load(written)
            return cls(tensors["ids"], tensors["keys"], tensors["values"])
        except (SafetensorError, KeyError) as error:
            raise MessageError(f"prefilled prompt {file} is no such file.") from error


def _size(file: BinaryIO, digest: str) -> int:
    """How many bytes a file holds, if they are those of a digest; else 0."""
    found, size = hashlib.sha256(), 0
    while block := file.read(_BLOCK_BYTES):
        found.update(block)
        size += len(block)
    return size if found.hexdigest() == digest else 0


def prefill(channel: Channel, message: Received, question: Question, passages: Text = ()) -> Prefilled:
    """What a channel's receiver goes on from when it answers, for an engine that serves the same model.

    The engine's answer, decoded greedily, is `Channel.receive`'s, as far as both compute alike.

    Args:
        channel: With the receiver.
        message: As for `Channel.receive`, like what follows.
        question: As text, or as a chat that ends with it.
        passages: What the receiver has read itself.

    Raises:
        MessageError: As `Channel.receive`, like all that follow.
        GeometryError: If message and prompt are longer than the receiver can see.
        DataError: If a chat cannot be understood.
        SettingError: If this channel has no receiver.
    """
    from lcf_lightning.receiving import decoder  # an engine that only loads what was saved needs no transformers

    decoding = decoder(channel, [message], [question], [passages], 1, {})
    decoding.check()
    keys, values = (
        torch.stack(side)[:, 0].transpose(1, 2).contiguous().cpu()
        for side in (decoding.cache.keys, decoding.cache.values)
    )
    return Prefilled(decoding.ids[0].cpu(), keys, values, channel.prompts.stop)
