"""The arms of an evaluation: ways to build the receiver's cache, all else equal (method.md §7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from lcf_lightning.channel import Channel
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.prompts import Tokens
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.answers import score
from lcf_lightning.models.cache import KVCache


@dataclass(frozen=True)
class Answer:
    """One arm's answer to one example.

    Attributes:
        id: The example's id.
        arm: The arm.
        needs_sharer: False if the receiver's own passages answer the question.
        prediction: What the receiver said.
        answers: What would have been accepted.
        loss: Cross entropy of the first accepted answer, mean over its tokens, in nats.
        exact_match: 0 or 1.
        f1: In [0, 1].
    """

    id: str
    arm: str
    needs_sharer: bool
    prediction: str
    answers: tuple[str, ...]
    loss: float
    exact_match: float
    f1: float


class ArmCaches:
    """The receiver caches of every arm for one batch; prefills are made once and shared.

    Args:
        channel: The pair and the adapter.
        batch: An evaluation batch.
    """

    def __init__(self, channel: Channel, batch: Batch) -> None:
        self.channel, self.batch = channel, batch

    @cached_property
    def own_context(self) -> KVCache:
        """The receiver reads its own passages."""
        return self.channel.read_receiver(self.batch.receiver)

    @cached_property
    def full_context(self) -> KVCache:
        """The receiver reads all passages as text: the ceiling."""
        return self.channel.read_receiver(_required(self.batch.full, "full"))

    @cached_property
    def message(self) -> KVCache:
        """The receiver reads its own passages and this example's message."""
        return self._fused(self.batch.sharer)

    @cached_property
    def mismatched(self) -> KVCache:
        """The receiver reads its own passages and another example's message."""
        return self._fused(_required(self.batch.mismatched, "mismatched"))

    def _fused(self, sharer: Tokens) -> KVCache:
        message = self.channel.pool(self.channel.read_sharer(sharer), sharer.spans)
        return self.channel.fuse(self.own_context, message)


ARMS = ("own_context", "message", "mismatched", "full_context")  # attributes of `ArmCaches`


def require_arms(arms: Sequence[str]) -> None:
    """Raise a SettingError if an arm is unknown or there is none."""
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise SettingError(f"arms={list(arms)} must be one or more of {', '.join(ARMS)}.")


@torch.no_grad()
def run_arms(caches: ArmCaches, arms: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """Every example of a batch answered under every arm: same prompt, decoding, stopping and scoring."""
    channel, batch, answers = caches.channel, caches.batch, []
    for arm in arms:
        cache: KVCache = getattr(caches, arm)
        losses = answer_losses(channel, cache, batch).tolist()
        predictions = channel.decode(cache, batch.last, max_new_tokens)
        for example, loss, prediction in zip(batch.examples, losses, predictions, strict=True):
            scores = score(prediction, example.answers)
            answers.append(Answer(example.id, arm, example.needs_sharer, prediction, example.answers, loss, *scores))
    return answers


def answer_losses(channel: Channel, cache: KVCache, batch: Batch) -> Tensor:
    """Cross entropy of each example's answer on a cache: ``[batch]``, float32, mean over its tokens, in nats."""
    logits = channel.logits(cache, batch.last, batch.answers, batch.answer_mask)
    losses = F.cross_entropy(logits.transpose(1, 2), batch.answers, reduction="none")
    return (losses * batch.answer_mask).sum(-1) / batch.answer_mask.sum(-1)


def _required(tokens: Tokens | None, name: str) -> Tokens:
    if tokens is None:
        raise SettingError(f"batch.{name} is missing: evaluation arms need batches of the evaluation loaders.")
    return tokens
