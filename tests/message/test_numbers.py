"""What a message carries arrives as it was sent."""

from __future__ import annotations

import hmac
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lcf_lightning import Message
from lcf_lightning.errors import MessageError
from tests.message.making import (
    FLOATS,
    FRAME,
    KEY,
    MAGIC,
    digest,
    equal,
    message,
    origin,
    parts,
    refuses,
    same,
    with_value,
)


def test_a_tensor_made_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="a tensor was made"), refuses("whatever"):
        Message.from_bytes(message().to_bytes())
    with pytest.raises(AssertionError, match="a tensor was made"), refuses("whatever"):
        Message.from_bytes(message().to_bytes("int8", KEY), KEY)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_arrive_as_they_were(dtype: str, tmp_path: Path) -> None:
    sent, key, spans = message(dtype, 57), KEY, 57
    arrived = Message.from_bytes(sent.to_bytes(key=key), key)
    sent.save(tmp_path / "new" / "a.message", key=key)
    read = Message.load(str(tmp_path / "new" / "a.message"), key, origin())
    assert same(arrived, sent)
    assert same(read, sent)
    assert (arrived.keys.dtype, arrived.spans) == (FLOATS[dtype], spans)
    arrived.keys.add_(1)  # memory of its own
    assert same(Message.from_bytes(sent.to_bytes(key=key), key), sent)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_arrives_may_be_written_to_and_nothing_warns(dtype: str, recwarn: pytest.WarningsRecorder) -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        arrived = Message.from_bytes(message().to_bytes(dtype))
    finally:
        torch.set_warn_always(always)
    assert arrived.keys.zero_().sum() == 0
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(("own", "dtype"), [("float32", "float16"), ("bfloat16", "float32")])
def test_floats_are_rounded_once_where_another_dtype_is_asked_for(own: str, dtype: str, tmp_path: Path) -> None:
    sent = message(own)
    arrived = Message.from_bytes(sent.to_bytes(dtype))
    sent.save(tmp_path / "a.message", dtype)
    assert equal(arrived.keys, sent.keys.to(FLOATS[dtype]))
    assert equal(arrived.values, sent.values.to(FLOATS[dtype]))
    assert same(Message.load(tmp_path / "a.message"), arrived)
    assert (tmp_path / "a.message").read_bytes() == sent.to_bytes(dtype)


def extremes(dtype: torch.dtype) -> Tensor:
    """Of both signs: the largest number, the least normal one, the least of all, and zero."""
    info = torch.finfo(dtype)
    numbers = torch.tensor([info.max, -info.max / 2, info.tiny, info.eps, 0.0], dtype=dtype)
    least = torch.ones(1, dtype=torch.int32 if dtype == torch.float32 else torch.int16).view(dtype)
    numbers = torch.cat([numbers, least])
    return torch.cat([numbers, -numbers])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_numbers_arrive(dtype: str) -> None:
    keys = extremes(FLOATS[dtype]).reshape(3, 1, 1, 1, 4)
    sent = Message(keys, keys.flip(0), origin(heads=1))
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert equal(Message.from_bytes(sent.to_bytes("float32")).keys, keys.float())


@pytest.mark.parametrize("name", ["sharer", "receiver"])
def test_a_model_that_the_receiver_does_not_know_may_be_any(name: str) -> None:
    known, unknown, other = (message(**{name: value}) for value in ("c" * 32, None, "b" * 32))
    for sent in (known, unknown):
        assert same(Message.from_bytes(sent.to_bytes(key=KEY), KEY, sent.origin), sent)
        assert same(Message.from_bytes(sent.to_bytes(), origin=unknown.origin), sent)
    with refuses(f"message of another adapter or pair: {name}=None, expected 'c+'.$"):
        Message.from_bytes(unknown.to_bytes(), origin=known.origin)
    with refuses(f"pair: {name}='c+', expected 'b+'.$"):
        Message.from_bytes(known.to_bytes(), origin=other.origin)


@pytest.mark.parametrize("pooled", [False, True])
def test_whether_a_message_is_pooled_arrives(pooled: bool, tmp_path: Path) -> None:
    sent = replace(message(spans=1), pooled=pooled)
    sent.save(tmp_path / "a.message", key=KEY)
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert same(Message.load(tmp_path / "a.message", KEY), sent)
    assert parts(sent.to_bytes())[0]["pooled"] is pooled
    other = (b'"pooled": true', b'"pooled":false') if pooled else (b'"pooled": false', b'"pooled":  true')
    with refuses("damaged: the digest is another"):
        Message.from_bytes(sent.to_bytes().replace(*other))


def test_the_text_that_a_message_was_sent_for_arrives(tmp_path: Path) -> None:
    sent = message(prompt="d2" * 16)
    sent.save(tmp_path / "a.message", key=KEY)
    assert same(Message.from_bytes(sent.to_bytes()), sent)
    assert same(Message.load(tmp_path / "a.message", KEY, origin()), sent)
    assert (Message.from_bytes(sent.to_bytes("int8")).prompt, message().prompt) == ("d2" * 16, None)
    assert parts(sent.to_bytes())[0]["prompt"] == "d2" * 16


def half_steps(sent: Tensor, arrived: Tensor, largest: int = 127) -> Tensor:
    """The error in halves of each vector's own step; zero where there is no step."""
    sent, arrived = sent.double(), arrived.double()
    step = sent.abs().amax(-1, keepdim=True) / largest
    return torch.where(sent == arrived, 0.0, (sent - arrived).abs() / (step / 2))


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize(("own", "spans", "head_dim"), [("float32", 57, 4), ("float16", 1, 5), ("float32", 2, 1)])
def test_whole_numbers_are_off_by_half_a_step_of_each_vector(
    dtype: str, largest: int, own: str, spans: int, head_dim: int
) -> None:
    sent = message(own, spans, head_dim=head_dim)
    sent.keys.mul_(10.0 ** torch.linspace(-3, 3, sent.keys[..., :1].numel()).reshape(sent.keys[..., :1].shape))
    sent.values[1] = 0.0
    arrived = Message.from_bytes(sent.to_bytes(dtype))
    assert (arrived.keys.dtype, arrived.keys.shape, arrived.origin) == (torch.float32, sent.keys.shape, sent.origin)
    for one, other in ((sent.keys, arrived.keys), (sent.values, arrived.values)):
        assert half_steps(one, other, largest).max() <= 1 + 1e-4
        torch.testing.assert_close(other.abs().amax(-1), one.float().abs().amax(-1), rtol=1e-6, atol=0.0)
    assert (arrived.values[1] == 0).all()


@pytest.mark.parametrize("largest", [1e-30, 1e-38])
def test_int8_is_off_by_half_a_step_however_small_the_vector_is(largest: float) -> None:
    """Its scale may be less than the least normal number."""
    sent = message()
    sent = replace(sent, keys=sent.keys / sent.keys.abs().amax(-1, keepdim=True) * largest)
    arrived = Message.from_bytes(sent.to_bytes("int8"))
    assert torch.isfinite(arrived.keys).all()
    assert half_steps(sent.keys, arrived.keys).max() <= 1 + 1e-2  # a scale so small has few digits


@pytest.mark.parametrize("units", [1, 190, 191])
def test_int8_keeps_every_sign_where_a_scale_has_no_digits(units: int) -> None:
    """As many times the least number of all."""
    sent = message()
    least = torch.ones_like(sent.keys, dtype=torch.int32).view(torch.float32)
    up, down = (
        Message.from_bytes(replace(sent, keys=keys).to_bytes("int8")).keys for keys in (least * units, least * -units)
    )
    assert ((up >= 0) & (up <= 2 * units * least)).all()
    assert torch.equal(up, -down)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.5), ("float32", 0.995), ("float32", 1.0)])
def test_what_int8_can_write_it_can_read(dtype: str, share: float) -> None:
    """Up to the largest number, or the sharer is told."""
    sent = with_value(share * torch.finfo(FLOATS[dtype]).max, dtype=dtype)
    data = b""
    with suppress(MessageError):
        data = sent.to_bytes("int8")
    assert data or share > 0.99
    if data:
        arrived = Message.from_bytes(data)
        assert torch.isfinite(arrived.keys).all()
        assert half_steps(sent.keys, arrived.keys).max() <= 1 + 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_a_message_says_the_same_each_time(dtype: str) -> None:
    sent = message()
    learned = replace(sent, values=sent.values.clone().requires_grad_())
    for key in (None, KEY):
        assert len({each.to_bytes(dtype, key) for each in [message(), sent, learned] * 8}) == 1
        arrived = Message.from_bytes(sent.to_bytes(dtype, key))
        if dtype in FLOATS:
            assert arrived.to_bytes(key=key) == sent.to_bytes(dtype, key)
    assert sent.to_bytes(dtype, KEY) != sent.to_bytes(dtype)
    assert message(seed=1).to_bytes(dtype) != sent.to_bytes(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_how_tensors_lie_in_memory_does_not_matter(dtype: str) -> None:
    sent, axes = message(), (2, 3)
    scattered = replace(sent, keys=sent.keys.transpose(*axes).contiguous().transpose(*axes))
    part = replace(sent, keys=torch.cat([sent.keys, sent.values], -1)[..., :4])
    for each in (scattered, part):
        assert not each.keys.is_contiguous()
        assert each.to_bytes(dtype) == sent.to_bytes(dtype)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_keys_and_values_may_be_one_tensor(dtype: str) -> None:
    sent = message(dtype if dtype in FLOATS else "float32")
    twice = replace(sent, values=sent.keys)
    arrived = Message.from_bytes(twice.to_bytes(dtype, KEY), KEY)
    assert equal(arrived.keys, arrived.values)
    assert twice.to_bytes(dtype) == replace(sent, values=sent.keys.clone()).to_bytes(dtype)


@pytest.mark.parametrize(("dtype", "key"), [("float16", None), ("int8", KEY)])
def test_bytes_are_laid_out_as_the_docstring_says(dtype: str, key: bytes | None) -> None:
    sent = message(spans=5)
    data = sent.to_bytes(dtype, key)
    magic, tag, length = FRAME.unpack_from(data)
    head, payload = data[FRAME.size : FRAME.size + length], data[FRAME.size + length :]
    assert magic == MAGIC
    assert tag == (hmac.digest(key, magic + data[40:], "sha256") if key else bytes(32))
    header = {
        "format": 1, "adapter": "a0" * 16, "sharer": "5b" * 16, "receiver": None, "layers": 3, "heads": 2,
        "head_dim": 4, "dtype": dtype, "spans": 5, "pooled": False, "prompt": None,
    }  # fmt: skip
    assert json.loads(head) == {**header, "sha256": digest(header, payload)}
    assert head == json.dumps(json.loads(head), sort_keys=True).encode()
    tensors = safetensors.torch.load(payload)
    assert all(tensors[side].shape == (3, 2, 5, 4) for side in ("keys", "values"))
    if dtype == "int8":
        assert {tensors[f"{side}_scale"].shape for side in ("keys", "values")} == {(3, 2, 5, 1)}
        assert [tensors[name].dtype for name in sorted(tensors)] == [torch.int8, torch.float32] * 2
        tensors = {side: tensors[side] * tensors[f"{side}_scale"] for side in ("keys", "values")}
        assert equal(tensors["keys"].unsqueeze(1), Message.from_bytes(data, key).keys)
    else:
        assert equal(tensors["keys"], sent.keys[:, 0].to(FLOATS[dtype]))
        assert equal(tensors["values"], sent.values[:, 0].to(FLOATS[dtype]))
    assert len(tensors) == 2


def test_the_smaller_dtype_makes_the_smaller_message() -> None:
    sent = message(spans=64, head_dim=64)
    numbers = sent.keys.numel() * 2
    widths = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 64, "int4": 1 / 2 + 4 / 64}
    for dtype, width in widths.items():
        assert 0 < len(sent.to_bytes(dtype)) - numbers * width < 700  # headers
    assert len(message("float16").to_bytes()) < len(message().to_bytes())


@pytest.mark.parametrize(
    ("dtype", "side", "place", "value"),
    [
        ("float32", "keys", 0, math.nan), ("float16", "values", -1, math.inf), ("bfloat16", "keys", -1, -math.inf),
        ("int8", "values", 0, math.nan),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_not_sent(dtype: str, side: str, place: int, value: float, tmp_path: Path) -> None:
    sent = with_value(value, place, side)
    with pytest.raises(MessageError, match=f"{side}.* not finite in {dtype}"):
        sent.to_bytes(dtype)
    with pytest.raises(MessageError, match=f"{side}.* not finite in {dtype}"):
        sent.save(tmp_path / "new" / "a.message", dtype)
    assert list(tmp_path.iterdir()) == []
