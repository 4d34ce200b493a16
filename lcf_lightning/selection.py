"""Which of the sharer's tokens are sent, where not all are: those that its question pays most attention to.

After SnapKV (Li et al. 2024), where each head keeps tokens of its own; here all layers and heads keep the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lcf_lightning.models.cache import KVCache, padded_left, positions_of, real_last, remember, to_transformers

NEIGHBOURS = 5
"""Tokens that a token's attention is averaged over: an answer is longer than the token that is looked at."""


@torch.no_grad()
def most_attended(
    model: PreTrainedModel, cache: KVCache, ids: Tensor, spans: Tensor, count: int, asking: int | None = None
) -> Tensor:
    """The tokens of the passages that get the largest share of the question's attention, all heads together.

    Args:
        model: The model that made the cache.
        cache: Of prompts, each of whose question is its last span.
        ids: ``[batch, tokens]``, int64: the prompts, padded on the left.
        spans: The same shape, int64: each token's span, -1 for none.
        count: How many tokens of a prompt, at least 1; all of its passages' where it has no more.
        asking: How many tokens a prompt has from its question on, at most; null to look (`Tokens`).

    Returns:
        ``[batch, tokens]``, bool. Of a prompt that is nothing but a question, the first tokens of that.
    """
    within = torch.where(spans < 0, spans.amax() + 1, spans)  # masked_fill would read its value on the host
    first, last = within.amin(1, keepdim=True), spans.amax(1, keepdim=True)
    question = (spans == last) & (spans >= 0)
    candidates = (spans >= 0) & (~question | (first == last))
    asks = question.cumsum(1).bool() & cache.mask
    paid = attention_paid(model, cache, ids, asks, asking).masked_fill(~candidates[:, None], 0)
    share = paid / paid.sum(2, keepdim=True).clamp(min=torch.finfo().tiny)  # else heads that look at no passage decide
    share = F.avg_pool1d(share.sum(1, keepdim=True), NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2)[:, 0]
    order = share.masked_fill(~candidates, -1).argsort(dim=1, descending=True, stable=True)
    return candidates & (order.argsort(dim=1) < count)


@torch.no_grad()
def attention_paid(
    model: PreTrainedModel, cache: KVCache, ids: Tensor, asks: Tensor, asking: int | None = None
) -> Tensor:
    """How much attention some tokens together pay to each one before the first of them.

    They are read once more, on the cache of what stands before.

    Args:
        model: The model that made the cache.
        cache: Of whole prompts.
        ids: ``[batch, tokens]``, int64: the prompts, padded on the left.
        asks: The same shape, bool: the last tokens of each prompt.
        asking: How many they are of the prompt that has most; null to look.

    Returns:
        ``[batch, heads of all layers, tokens]``, float32; 0 at the tokens themselves.
    """
    order = real_last(~asks)[:, : max(1, int(asks.sum(1).max()) if asking is None else asking)]
    asked, before = asks.gather(1, order), cache.mask & ~asks
    # A sliding window counts slots: what stands before must end where they begin.
    past = padded_left(torch.stack(cache.keys), torch.stack(cache.values), before)
    places = real_last(before)
    mask = torch.cat([past.mask, asked], dim=1)
    with _attention_weights(model):
        output = remember(
            model, to_transformers(model, past), ids.gather(1, order), mask, positions_of(mask)[:, ids.shape[1] :],
            output_attentions=True,
        )  # fmt: skip
    layers = [  # [batch, heads, asking tokens, all tokens]
        (layer[..., : ids.shape[1]].to(ids.device).float() * asked[:, None, :, None]).sum(2)
        for layer in output.attentions
    ]
    paid = torch.cat(layers, dim=1).masked_fill(~past.mask[:, None], 0)
    return torch.zeros_like(paid).scatter(2, places[:, None].expand_as(paid), paid)


@contextmanager
def _attention_weights(model: PreTrainedModel) -> Iterator[None]:
    """Let a model say its attention weights, which only the plain implementation knows."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
