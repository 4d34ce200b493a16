from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lcf_lightning import ModelSpec
from lcf_lightning.errors import GeometryError
from lcf_lightning.models.cache import KVCache, continue_from, extend, positions_of, prefill
from lcf_lightning.models.decoding import generate
from lcf_lightning.models.geometry import KV
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.models.rotary import Rotary
from tests.models.conftest import left_padded, rows


def test_prefill_then_continue_equals_the_plain_forward(frozen: FrozenModel) -> None:
    """Padded or not, also where a window slides."""
    texts, tail = rows(), torch.randint(2, 290, (3, 5))
    tail_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    with torch.no_grad():
        padded = continue_from(frozen.model, prefill(frozen.model, *left_padded(texts)), tail, tail_mask).logits()
        for row, text in enumerate(texts):
            count = int(tail_mask[row].sum())
            plain = frozen.model(input_ids=torch.cat([text, tail[row, :count]])[None]).logits[0, -count:]
            alone_cache = prefill(frozen.model, text[None], torch.ones(1, len(text), dtype=torch.bool))
            alone = continue_from(frozen.model, alone_cache, tail[row : row + 1], tail_mask[row : row + 1]).logits()
            torch.testing.assert_close(padded[row, :count], plain, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone[0, :count], plain, atol=1e-4, rtol=1e-4)


def test_a_frozen_model_has_its_own_dtype_whatever_surrounds_it(frozen: FrozenModel) -> None:
    """As in a fit in mixed precision."""

    def read() -> tuple[torch.Tensor, ...]:
        cache = prefill(frozen.model, *left_padded(rows()))
        more, mask = torch.tensor([[7, 8]] * 3), torch.ones(3, 2, dtype=torch.bool)
        extended = extend(frozen.model, cache, more, mask)
        return (
            continue_from(frozen.model, cache, more, mask).logits(),
            *extended.keys,
            generate(frozen, cache, more[:, :1], 3),
        )

    with torch.no_grad():
        expected = read()
        with torch.autocast("cpu", torch.bfloat16):
            found = read()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_token_that_the_model_does_not_know_is_named(frozen: FrozenModel) -> None:
    known = frozen.config.vocab_size
    ids = torch.tensor([[3, known]])
    with pytest.raises(GeometryError, match=f"ids hold token {known}; the model knows {known} tokens"):
        prefill(frozen.model, ids, torch.ones_like(ids, dtype=torch.bool))


def test_every_layer_keeps_all_tokens(frozen: FrozenModel) -> None:
    cache = prefill(frozen.model, *left_padded(rows()))
    geometry = frozen.geometry
    assert len(cache.keys) == geometry.layers
    assert {tuple(t.shape) for t in cache.keys + cache.values} == {(3, geometry.kv_heads, 13, geometry.head_dim)}


def test_a_cache_is_a_value(frozen: FrozenModel) -> None:
    """Continuing, decoding and editing leave a cache as it was."""
    cache = prefill(frozen.model, *left_padded(rows()))
    before = [tensor.clone() for tensor in cache.keys + cache.values]
    layers = (0, frozen.geometry.layers - 1)
    delta = KV(*(torch.ones_like(tensor) for tensor in cache.read(layers)))
    edited = cache.edit(layers, delta)
    with torch.no_grad():
        continue_from(frozen.model, cache, torch.tensor([[5]] * 3), torch.ones(3, 1, dtype=torch.bool))
    generate(frozen, cache, torch.tensor([[5]] * 3), 3)
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys + cache.values, strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(cache.keys, edited.keys, strict=True)]
    assert [index for index, is_changed in enumerate(changed) if is_changed] == list(layers)


def test_an_edit_of_zero_changes_no_bit(frozen: FrozenModel) -> None:
    cache = prefill(frozen.model, *left_padded(rows()))
    layers = tuple(range(frozen.geometry.layers))
    zero = KV(*(torch.zeros_like(tensor) for tensor in cache.read(layers)))
    for rotary in (None, Rotary(frozen.model)):
        edited = cache.edit(layers, zero, rotary)
        assert all(torch.equal(a, b) for a, b in zip(cache.keys, edited.keys, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(cache.values, edited.values, strict=True))


def test_padding_reads_as_zero(frozen: FrozenModel) -> None:
    cache = prefill(frozen.model, *left_padded(rows()))
    keys, values = cache.read((0, 1), Rotary(frozen.model))
    padding = ~cache.mask[None, :, None, :, None].expand_as(keys)
    assert padding.any()
    assert keys[padding].abs().max() == 0
    assert values[padding].abs().max() == 0
    assert keys[~padding].abs().min() > 0


def test_gradients_flow_into_the_edit_and_nowhere_else(frozen: FrozenModel) -> None:
    cache = prefill(frozen.model, *left_padded(rows()))
    layers = tuple(range(frozen.geometry.layers))
    delta = KV(*(torch.zeros_like(tensor, requires_grad=True) for tensor in cache.read(layers)))
    edited = cache.edit(layers, delta, Rotary(frozen.model))
    said = continue_from(frozen.model, edited, torch.tensor([[5, 6]] * 3), torch.ones(3, 2, dtype=torch.bool))
    said.logits().logsumexp(-1).sum().backward()
    assert delta.values.grad is not None
    assert (delta.values.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in frozen.model.parameters())


def test_generate_decodes_as_transformers_does(frozen: FrozenModel) -> None:
    texts = rows()
    ids, mask = left_padded(texts)
    batched = generate(frozen, prefill(frozen.model, ids[:, :-1], mask[:, :-1]), ids[:, -1:], 6)
    for row, text in enumerate(texts):
        alone = frozen.model.generate(text[None], max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(text) :]
        assert batched[row, : len(alone)].tolist() == alone.tolist()
    assert batched.shape == (3, 6)


def test_generate_stops_at_a_stop_token(frozen: FrozenModel) -> None:
    ids, mask = left_padded(rows())
    cache = prefill(frozen.model, ids[:, :-1], mask[:, :-1])
    free = generate(frozen, cache, ids[:, -1:], 6)
    stop = int(free[0, 2])
    frozen.model.generation_config.eos_token_id = [stop]  # besides the tokenizer's own, which fills the rest
    stopped = generate(frozen, cache, ids[:, -1:], 6)
    first = free[0].tolist().index(stop)
    assert stopped[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert set(stopped[0, first + 1 :].tolist()) <= {frozen.tokenizer.eos_token_id}


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert positions_of(mask).dtype == torch.long


def test_wrong_shapes_are_refused(spec: Callable[[str], ModelSpec]) -> None:
    frozen = load_frozen(spec("llama"))
    ids, mask = left_padded(rows())
    with pytest.raises(GeometryError, match=r"ids \(3, 13\) and mask \(3, 12\)"):
        prefill(frozen.model, ids, mask[:, :-1])
    with pytest.raises(GeometryError, match="must be torch.bool"):
        prefill(frozen.model, ids, mask.long())
    with pytest.raises(GeometryError, match="padded on the left"):
        prefill(frozen.model, ids, mask.flip(1))
    cache = prefill(frozen.model, ids, mask)
    wrong = KV(torch.zeros(1, 3, 2, 1, 8), torch.zeros(1, 3, 2, 13, 8))
    with pytest.raises(
        GeometryError, match=r"delta.keys has shape \(1, 3, 2, 1, 8\); the cache needs \(1, 3, 2, 13, 8\)"
    ):
        cache.edit((0,), wrong)
    assert isinstance(cache, KVCache)


def test_rows_and_the_cache_before_the_last_token(frozen: FrozenModel) -> None:
    """A row of the cache, once or twice, and the cache without its last token continue as the whole would."""
    cache = prefill(frozen.model, *left_padded(rows()))
    tail, mask = torch.randint(2, 290, (3, 2)), torch.ones(3, 2, dtype=torch.bool)
    with torch.no_grad():
        whole = continue_from(frozen.model, cache, tail, mask).logits()
        index = torch.tensor([2, 0, 2])
        some = continue_from(frozen.model, cache.rows(index), tail[index], mask).logits()
        torch.testing.assert_close(some, whole[index], atol=1e-5, rtol=1e-5)
        last = left_padded(rows())[0][:, -1:]
        again = continue_from(frozen.model, cache.without_last(), torch.cat([last, tail], 1), torch.ones(3, 3).bool())
        torch.testing.assert_close(again.logits(1), whole, atol=1e-4, rtol=1e-4)
    assert cache.without_last().mask.shape[1] == cache.mask.shape[1] - 1


def test_tokens_put_before_a_cache_are_as_if_read_first(frozen: FrozenModel) -> None:
    """In the first layer, whose keys and values know nothing of earlier tokens, exactly so; padded or not."""
    rotary, texts = Rotary(frozen.model), rows()
    first = [torch.randint(2, 290, (count,)) for count in (3, 1, 2)]
    every = tuple(range(frozen.geometry.layers))
    with torch.no_grad():
        together = prefill(frozen.model, *left_padded([torch.cat(pair) for pair in zip(first, texts, strict=True)]))
        told = prefill(frozen.model, *left_padded(first))
        cache = prefill(frozen.model, *left_padded(texts))
        longer = cache.prepend(every, told.read(every, rotary), told.mask, rotary)
        for row, mask in enumerate(together.mask):
            count = int(mask.sum())
            assert longer.mask[row].tolist() == [False] * (16 - count) + [True] * count  # padded on the left
            for ours, theirs in ((longer.keys, together.keys), (longer.values, together.values)):
                torch.testing.assert_close(ours[0][row, :, -count:], theirs[0][row, :, -count:], atol=1e-4, rtol=1e-3)
        assert not torch.allclose(longer.values[1], together.values[1], atol=1e-3)


def test_tables_that_grow_with_a_text_are_those_of_the_whole() -> None:
    """Longrope, as Phi-3 has it, takes other factors from a certain length on: own tokens and new ones alike."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, **factors}
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    rotary, first = Rotary(model), torch.randint(2, 290, (1, 3))
    for own in (5, 14, 30):  # short; long with what stands before it; long
        text = torch.randint(2, 290, (1, own))
        together, told, cache = (
            prefill(model, ids, torch.ones_like(ids, dtype=torch.bool))
            for ids in (torch.cat([first, text], 1), first, text)
        )
        longer = cache.prepend((0, 1), told.read((0, 1), rotary), told.mask, rotary)
        torch.testing.assert_close(longer.keys[0], together.keys[0], atol=1e-5, rtol=1e-4)


def test_where_nothing_is_put_before_it_a_cache_says_the_same(frozen: FrozenModel) -> None:
    rotary, cache = Rotary(frozen.model), prefill(frozen.model, *left_padded(rows()))
    every, tail = tuple(range(frozen.geometry.layers)), torch.randint(2, 290, (3, 2))
    told = KV(*(torch.randn(len(every), 3, frozen.geometry.kv_heads, 2, frozen.geometry.head_dim) for _ in range(2)))
    with torch.no_grad():
        plain = continue_from(frozen.model, cache, tail, torch.ones_like(tail, dtype=torch.bool)).logits()
        absent = cache.prepend(every, told, torch.zeros(3, 2, dtype=torch.bool), rotary)
        same = continue_from(frozen.model, absent, tail, torch.ones_like(tail, dtype=torch.bool)).logits()
        there = cache.prepend(every, told, torch.tensor([[True, True], [False, True], [False, False]]), rotary)
        other = continue_from(frozen.model, there, tail, torch.ones_like(tail, dtype=torch.bool)).logits()
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other[2], plain[2], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(other[1], plain[1], atol=1e-3)


def test_tokens_are_put_before_some_layers_only(frozen: FrozenModel) -> None:
    rotary, cache = Rotary(frozen.model), prefill(frozen.model, *left_padded(rows()))
    told = KV(*(torch.randn(1, 3, frozen.geometry.kv_heads, 2, frozen.geometry.head_dim) for _ in range(2)))
    longer = cache.prepend((1,), told, torch.ones(3, 2, dtype=torch.bool), rotary)
    assert not longer.keys[0][0, :, :2].any()
    assert torch.equal(longer.values[1][0, :, :2], told.values[0, 0])
    with pytest.raises(GeometryError, match=r"tokens.keys has shape .*; the cache needs \(2, 3,"):
        cache.prepend((0, 1), told, torch.ones(3, 2, dtype=torch.bool), rotary)
    with pytest.raises(GeometryError, match="tokens.keys has shape"):
        cache.prepend((1,), told, torch.ones(3, 1, dtype=torch.bool), rotary)
    with pytest.raises(GeometryError, match=r"present \(2, 2\) must mark the tokens of a batch of 3"):
        cache.prepend((1,), told, torch.ones(2, 2, dtype=torch.bool), rotary)


def test_a_window_that_has_slid_on_sees_nothing_put_before_the_text(spec: Callable[[str], ModelSpec]) -> None:
    """Documented: where every layer slides, tokens before a text that is longer than the window are out of sight."""
    gemma = load_frozen(spec("gemma3"))
    rotary, tail = Rotary(gemma.model), torch.randint(2, 290, (1, 2))
    told = KV(*(torch.randn(1, 1, 1, 2, 16) for _ in range(2)))
    changed = {}
    for own in (2, 13):  # the window is 6
        ids = torch.randint(2, 290, (1, own))
        cache = prefill(gemma.model, ids, torch.ones_like(ids, dtype=torch.bool))
        sliding, everywhere = (
            continue_from(
                gemma.model,
                cache.prepend((layer,), KV(told.keys * scale, told.values * scale), torch.ones(1, 2).bool(), rotary),
                tail,
                torch.ones_like(tail, dtype=torch.bool),
            ).logits()
            for layer, scale in ((4, 0.0), (0, 1.0))
        )
        changed[own] = float((sliding - everywhere).abs().max())
    assert changed[2] > 1e-3
    assert changed[13] < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_read_on_a_cache_is_remembered_as_if_read_at_once(
    spec: Callable[[str], ModelSpec], family: str
) -> None:
    model = load_frozen(spec(family)).model
    ids = torch.randint(3, 250, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    whole, first = prefill(model, ids, mask), prefill(model, ids[:, :6], mask[:, :6])
    kept = [tensor.clone() for tensor in first.keys]
    both = extend(model, first, ids[:, 6:], mask[:, 6:])
    for one, other in zip((*both.keys, *both.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(one[1], other[1])
        torch.testing.assert_close(one[0, :, 3:], other[0, :, 3:])
    assert torch.equal(both.mask, mask)
    assert all(torch.equal(one, other) for one, other in zip(first.keys, kept, strict=True))
