"""Tensors that are no message, and dtypes that cannot hold one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lcf_lightning import Message
from lcf_lightning.errors import MessageError, SettingError
from lcf_lightning.hearing import together
from tests.message.making import (
    equal,
    message,
    origin,
    same,
    with_value,
)


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((3, 1, 2, 5), (3, 1, 2, 5)),
        ((3, 1, 2, 5, 4), (3, 1, 2, 6, 4)),
        ((3, 1, 2, 0, 4), (3, 1, 2, 0, 4)),
        ((2, 1, 2, 5, 4), (2, 1, 2, 5, 4)),
        ((3, 2, 2, 5, 4), (3, 2, 2, 5, 4)),
        ((3, 1, 2, 5, 3), (3, 1, 2, 5, 3)),
    ],
)
def test_tensors_of_another_shape_are_no_message(shape: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match=r"must both be \[3, 1, 2, spans, 4\] with at least one span") as error:
        Message(torch.zeros(shape), torch.zeros(others), origin())
    assert f"keys {shape} and values {others}" in str(error.value)
    assert Message(torch.zeros(3, 1, 2, 6, 4), torch.zeros(3, 1, 2, 6, 4), origin()).spans == 6


@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("float32", "float16")])
def test_tensors_of_another_dtype_are_no_message(dtypes: tuple[str, str]) -> None:
    keys, values = (torch.zeros(3, 1, 2, 5, 4, dtype=getattr(torch, dtype)) for dtype in dtypes)
    with pytest.raises(MessageError, match=f"torch.{dtypes[0]}.*torch.{dtypes[1]}.*float32, bfloat16, float16"):
        Message(keys, values, origin())
    assert Message(keys.float(), values.float(), origin()).keys.dtype == torch.float32


@pytest.mark.parametrize(("value", "dtype"), [(65520.0, "float16"), (3.4e38, "bfloat16")])
def test_what_a_dtype_cannot_hold_is_not_sent_in_it(value: float, dtype: str) -> None:
    sent = with_value(value, -1, "values")
    with pytest.raises(MessageError, match=f"values of this message hold values that are not finite in {dtype}"):
        sent.to_bytes(dtype)
    assert same(Message.from_bytes(sent.to_bytes()), sent)


@pytest.mark.parametrize("dtype", ["F32", "int2"])
def test_an_unknown_dtype_is_named(dtype: str, tmp_path: Path) -> None:
    for write in (message().to_bytes, lambda asked: message().save(tmp_path / "a.message", asked)):
        with pytest.raises(SettingError, match=f"dtype='{dtype}' .*float32, bfloat16, float16, int8, int4, or None"):
            write(dtype)
    assert list(tmp_path.iterdir()) == []


def test_messages_of_a_batch_are_padded_on_the_left() -> None:
    short, long = message(spans=1, seed=1), message(spans=2, seed=2)
    keys, values, present = together([[short], [short, long]], torch.zeros(1))
    assert present.tolist() == [[False, False, True], [True, True, True]]
    assert equal(keys[:, :1, :, 2:], short.keys)
    assert keys[:, 0, :, :2].abs().sum() == 0
    assert equal(values[:, 1:, :, 1:], long.values)
