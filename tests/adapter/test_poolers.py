from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcf_lightning.adapter.parts import PartShape, Summaries
from lcf_lightning.adapter.poolers.prefix import PrefixPooler
from lcf_lightning.adapter.poolers.span import SpanPooler
from lcf_lightning.errors import GeometryError
from lcf_lightning.models.geometry import KV
from tests.adapter.conftest import SHARER, random_kv

SPANS = torch.tensor([[-1, 0, 0, 1, 1, 1, 2], [-1, -1, -1, 0, 0, 1, 1]])  # three spans and two, left-padded


def pooled(pooler: SpanPooler, cache: KV, spans: Tensor) -> KV:
    return pooler.merge(pooler.summarise(cache, spans)).kv


def attend(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(keys @ query / query.shape[-1] ** 0.5, dim=0)
    return weights @ keys, weights @ values


def plain_pool(pooler: SpanPooler, cache: KV, spans: Tensor) -> KV:
    """The formula of LCF-X, one layer, example and head at a time."""
    layers, batch, heads, _, size = cache.keys.shape
    out = KV(torch.zeros(layers, batch, heads, 1, size), torch.zeros(layers, batch, heads, 1, size))
    for layer in range(layers):
        for b in range(batch):
            for h in range(heads):
                summaries = [
                    attend(pooler.base_query[layer, h], *(t[layer, b, h][spans[b] == span] for t in cache))
                    for span in range(int(spans[b].max()) + 1)
                ]
                keys, values = (torch.stack(parts) for parts in zip(*summaries, strict=True))
                key, value = attend(pooler.layer_query[layer, h], keys, values)
                out.keys[layer, b, h, 0], out.values[layer, b, h, 0] = key, value
    return out


@pytest.fixture
def pooler() -> SpanPooler:
    torch.manual_seed(0)
    return SpanPooler(PartShape(3, SHARER, SHARER, d=16))


@torch.no_grad()
def test_pooling_is_its_formula(pooler: SpanPooler) -> None:
    cache = random_kv(3, SHARER, 2, 7)
    expected = plain_pool(pooler, cache, SPANS)
    for ours, plain in zip(pooled(pooler, cache, SPANS), expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_and_tokens_in_no_span_do_not_matter(pooler: SpanPooler) -> None:
    cache = random_kv(3, SHARER, 2, 7)
    before = pooled(pooler, cache, SPANS)
    for tensor in cache:
        tensor.masked_fill_((SPANS < 0)[None, :, None, :, None], 1e3)
    after = pooled(pooler, cache, SPANS)
    assert torch.equal(before.keys, after.keys)
    assert torch.equal(before.values, after.values)


@torch.no_grad()
def test_the_number_of_spans_is_free_and_their_order_does_not_matter(pooler: SpanPooler) -> None:
    cache = random_kv(3, SHARER, 1, 7)
    one, seven = (pooled(pooler, cache, spans) for spans in (torch.zeros(1, 7).long(), torch.arange(7)[None]))
    assert one.keys.shape == seven.keys.shape == (3, 1, 2, 1, 8)
    turned = pooled(pooler, KV(*(tensor.flip(3) for tensor in cache)), torch.arange(7)[None])
    torch.testing.assert_close(seven.keys, turned.keys, atol=1e-5, rtol=1e-5)


def test_both_queries_learn_without_nan(pooler: SpanPooler) -> None:
    """Row 1 has a span less than row 0: its missing span must not poison gradients."""
    message = pooled(pooler, random_kv(3, SHARER, 2, 7), SPANS)
    (message.keys.square().sum() + message.values.square().sum()).backward()
    for query in (pooler.base_query, pooler.layer_query):
        assert query.grad is not None
        assert torch.isfinite(query.grad).all()
        assert (query.grad.flatten(1).norm(dim=1) > 0).all()


def test_wrong_spans_are_refused(pooler: SpanPooler) -> None:
    cache = random_kv(3, SHARER, 2, 7)
    with pytest.raises(GeometryError, match=r"spans \(2, 6\) must be \[batch, tokens\]"):
        pooled(pooler, cache, SPANS[:, 1:])
    with pytest.raises(GeometryError, match="every row needs at least one token in a span"):
        pooled(pooler, cache, torch.stack([SPANS[0], torch.full((7,), -1)]))


@torch.no_grad()
def test_summaries_of_several_caches_pool_as_one(pooler: SpanPooler) -> None:
    """Each span is summarised alone: whether one sharer or two have read them does not matter."""
    cache = random_kv(3, SHARER, 1, 7)
    spans = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    whole = pooled(pooler, cache, spans)
    first, _ = pooler.summarise(KV(*(tensor[..., :5, :] for tensor in cache)), spans[:, :5])
    second, present = pooler.summarise(KV(*(tensor[..., 5:, :] for tensor in cache)), spans[:, 5:])
    assert present.tolist() == [[False, False, True]]
    both = KV(*(torch.cat([one, other[..., 2:, :]], 3) for one, other in zip(first, second, strict=True)))
    for ours, expected in zip(pooler.merge(Summaries(both, torch.ones(1, 3).bool())).kv, whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_absent_summaries_do_not_matter(pooler: SpanPooler) -> None:
    summaries, present = pooler.summarise(random_kv(3, SHARER, 2, 7), SPANS)
    assert present.tolist() == [[True, True, True], [True, True, False]]
    before = pooler.merge(Summaries(summaries, present)).kv
    for tensor in summaries:
        tensor[:, 1, :, 2] = 1e3
    for one, other in zip(before, pooler.merge(Summaries(summaries, present)).kv, strict=True):
        assert torch.equal(one, other)
    single, alone = KV(*(tensor[:, :1, :, :1] for tensor in summaries)), torch.ones(1, 1).bool()
    assert all(
        torch.equal(one, other) for one, other in zip(pooler.merge(Summaries(single, alone)).kv, single, strict=True)
    )


@pytest.fixture
def prefix() -> PrefixPooler:
    torch.manual_seed(0)
    return PrefixPooler(PartShape(3, SHARER, SHARER, d=16, prepends=True))


@torch.no_grad()
def test_summaries_of_a_prefix_are_their_formula(prefix: PrefixPooler) -> None:
    cache = random_kv(3, SHARER, 2, 7)
    prefix.queries.weight.mul_(10)  # away from the span's mean
    sent = prefix.summarise(cache, SPANS)
    assert sent.present.tolist() == [[True, True, True], [True, True, False]]
    assert prefix.merge(sent) is sent
    for layer, row, head, span in ((0, 0, 0, 1), (2, 1, 1, 0)):
        inside = SPANS[row] == span
        x = torch.cat([tensor[layer, row].transpose(0, 1).flatten(1) for tensor in cache], -1)[inside]
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        for place, (ours, told) in enumerate(zip(sent.kv, cache, strict=True)):
            weights = torch.softmax(x @ prefix.queries.weight[layer, :, 2 * place + head], 0)
            expected = weights @ told[layer, row, head][inside]
            torch.testing.assert_close(ours[layer, row, head, span], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_prefix_summarises_each_span_alone(prefix: PrefixPooler) -> None:
    cache = random_kv(3, SHARER, 2, 7)
    before = prefix.summarise(cache, SPANS)
    for tensor in cache:
        tensor.masked_fill_((SPANS != 0)[None, :, None, :, None], 1e3)
    after = prefix.summarise(cache, SPANS)
    for one, other in zip(before.kv, after.kv, strict=True):
        assert torch.equal(one[:, :, :, 0], other[:, :, :, 0])
        assert not torch.equal(one[:, 0, :, 1], other[:, 0, :, 1])


def test_a_prefix_learns_without_nan(prefix: PrefixPooler) -> None:
    sent = prefix.summarise(random_kv(3, SHARER, 2, 7), SPANS)
    sum(tensor.square().sum() for tensor in sent.kv).backward()  # type: ignore[union-attr]
    assert prefix.queries.weight.grad is not None
    assert torch.isfinite(prefix.queries.weight.grad).all()
    assert (prefix.queries.weight.grad.flatten(1).norm(dim=1) > 0).all()
