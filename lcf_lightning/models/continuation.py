"""`Continuation`: what a model says of tokens that it has read on a cache; logits are made where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

LOGITS_AT_ONCE = 2**26
"""Logits that are made at once, 268 MB in float32: those of 441 tokens where the vocabulary has 152,000."""


class Likelihood(NamedTuple):
    """How probable some tokens are where they stand.

    Attributes:
        losses: ``[batch, tokens]``, float32: the cross entropy of each, in nats.
        greedy: ``[batch, tokens]``, bool: whether it is the most probable one.
    """

    losses: Tensor
    greedy: Tensor


@dataclass(frozen=True)
class Continuation:
    """What a model says after each of some tokens.

    Kept are the decoder's hidden states, for the logits of four answers of 1,024 tokens are 2.5 GB in float32, which a
    loss and its gradient hold three times. The head is applied to a part of the tokens at a time and, where there are
    several parts and gradients flow, once more in the backward pass.

    Attributes:
        model: The model.
        said: What its `reader` said of these tokens: hidden states or, of a whole model, logits; with their graph.
    """

    model: PreTrainedModel
    said: ModelOutput

    @classmethod
    def of(cls, model: PreTrainedModel, output: ModelOutput, device: torch.device) -> Continuation:
        """The same on ``device``, without the cache that came with it, which nobody needs any more."""
        name = "logits" if "logits" in output else "last_hidden_state"
        return cls(model, type(output)(**{name: output[name].to(device)}))

    @staticmethod
    def reader(model: PreTrainedModel) -> nn.Module:
        """What reads tokens: the model's decoder or, where its head cannot be applied alone, the whole model."""
        decoder: nn.Module = model.get_decoder()
        return decoder if any(child is decoder for child in model.children()) else model

    def logits(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits after some of the tokens, by default all: ``[batch, stop - start, vocabulary]``, float32."""
        ((name, whole),) = self.said.items()
        part: Tensor = whole[:, start:stop]
        return part.float() if name == "logits" else self._logits(part).float()

    def likelihood(self, ids: Tensor) -> Likelihood:
        """How probable ``ids``, ``[batch, tokens]``, int64, are: each after the token that was read in its place."""
        parts = list(self._parts(ids))
        once = len(parts) == 1 or not torch.is_grad_enabled()
        twice = partial(checkpoint, self._likelihood, use_reentrant=False, preserve_rng_state=False)
        likelihoods = [(self._likelihood if once else twice)(ids, *part) for part in parts]
        return Likelihood(*(torch.cat(side, dim=1) for side in zip(*likelihoods, strict=True)))

    def _likelihood(self, ids: Tensor, start: int, stop: int) -> Likelihood:
        logits, ids = self.logits(start, stop), ids[:, start:stop]
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        return Likelihood(losses, logits.argmax(-1) == ids)

    def _parts(self, ids: Tensor) -> Iterator[tuple[int, int]]:
        """Where the parts of the tokens begin and end whose logits are made at once."""
        batch, tokens = ids.shape
        step = max(1, LOGITS_AT_ONCE // (batch * self.model.config.get_text_config(decoder=True).vocab_size))
        return ((start, min(start + step, tokens)) for start in range(0, tokens, step))

    def _logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits of hidden states, whatever its ``forward`` does with them (softcapping, scaling).

        That runs on a shallow copy of the model, in which what the decoder has said takes the decoder's place.
        """
        # Of a part that is not contiguous, torch on a CPU copies the head's weights for every example.
        alone, said = copy(self.model), _Said(type(self.said)(last_hidden_state=hidden.contiguous()))
        decoder = self.reader(self.model)
        alone._modules = {name: said if part is decoder else part for name, part in self.model._modules.items()}
        with torch.autocast(hidden.device.type, enabled=False):  # in the model's own dtype
            logits: Tensor = type(self.model).forward(alone).logits
        return logits.to(hidden.device)


class _Said(nn.Module):
    """In a decoder's place: what it has said already."""

    def __init__(self, output: ModelOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.output
