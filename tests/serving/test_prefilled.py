"""What a channel hands over to an engine: with it, transformers itself gives the channel's answer."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from lcf_lightning import ModelSpec
from lcf_lightning.errors import MessageError
from lcf_lightning.models.decoding import cut
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.serving import Prefilled, prefill
from lcf_lightning.serving.prefilled import PARAMETER
from tests.serving.conftest import Make

PASSAGES, QUESTION = ["Ada lives in Oslo.", "Bob owns a kite."], "Where does Ada live?"


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> FrozenModel:
    return load_frozen(ModelSpec(str(model_folders["qwen3"])), torch.device("cpu"))


@pytest.fixture(scope="module")
def prefilled(make: Make, model: FrozenModel) -> Prefilled:
    channel = make(model, "carry")
    return prefill(channel, channel.send(PASSAGES, QUESTION), QUESTION)


@pytest.mark.parametrize("way", ["carry", "prefix", "span", "shared"])
def test_an_engine_goes_on_to_the_channels_answer(make: Make, model: FrozenModel, way: str, tmp_path: Path) -> None:
    channel = make(model, way)
    own = PASSAGES if way == "shared" else ["Cleo has a lamp."]
    message = channel.send(PASSAGES, QUESTION)
    request = prefill(channel, message, QUESTION, own).save(tmp_path)
    answer = channel.receive(message, QUESTION, own, max_new_tokens=12)
    read = Prefilled.load(tmp_path, request["kv_transfer_params"][PARAMETER])

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(read.keys, read.values, strict=True)):
        cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    ids = torch.tensor([request["prompt"]])
    said = model.model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert cut(model.tokenizer.decode(said, skip_special_tokens=True), *request["stop"]) == str(answer)
    assert not torch.equal(read.keys, prefill(channel, None, QUESTION, own).keys)  # the message is in it


def test_what_was_saved_is_loaded(prefilled: Prefilled, tmp_path: Path) -> None:
    request = prefilled.save(tmp_path)
    assert [*request] == ["prompt", "kv_transfer_params", "stop"]
    assert request == prefilled.save(tmp_path), "one name for one content"
    [file] = tmp_path.iterdir()
    read = Prefilled.load(tmp_path, file.stem)
    assert all(torch.equal(getattr(read, name), getattr(prefilled, name)) for name in ("ids", "keys", "values"))
    assert repr(read) == f"Prefilled({len(read.ids) - 1} tokens, 4 layers of 4 × 6, torch.float32)"


def test_what_was_not_saved_is_refused(prefilled: Prefilled, tmp_path: Path) -> None:
    digest = prefilled.save(tmp_path)["kv_transfer_params"][PARAMETER]
    file = tmp_path / f"{digest}.safetensors"
    written = file.read_bytes()
    file.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(MessageError, match="does not hold what was written"):
        Prefilled.load(tmp_path, digest)
    file.unlink()
    with pytest.raises(MessageError, match="cannot be read: No such file"):
        Prefilled.load(tmp_path, digest)
    os.mkfifo(file)
    with pytest.raises(MessageError, match="cannot be read: it is no regular file"):
        Prefilled.load(tmp_path, digest)
    with pytest.raises(MessageError, match="cannot be read"):
        Prefilled.load("a\0b", digest)
    for name in (f"../{digest}", digest.upper(), "", 7, None):
        with pytest.raises(MessageError, match="64 hexadecimal digits"):
            Prefilled.load(tmp_path, name)  # type: ignore[arg-type]


def test_a_file_of_any_size_is_compared_before_it_is_held(tmp_path: Path) -> None:
    with (tmp_path / f"{'0' * 64}.safetensors").open("wb") as file:
        file.truncate(200 << 20)
    tracemalloc.start()
    with pytest.raises(MessageError, match="does not hold what was written"):
        Prefilled.load(tmp_path, "0" * 64)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 << 20


def test_tensors_that_do_not_fit_are_refused(prefilled: Prefilled) -> None:
    wrong = {
        "ids": [prefilled.ids[:-1], prefilled.ids.int(), prefilled.ids[None]],
        "keys": [prefilled.keys.half(), prefilled.keys[1:], prefilled.keys.double()],
    }
    for name, tensors in wrong.items():
        for tensor in tensors:
            with pytest.raises(MessageError, match=r"a prefilled prompt has ids \[tokens \+ 1\]"):
                replace(prefilled, **{name: tensor})
    with pytest.raises(MessageError, match="not finite"):
        replace(prefilled, values=prefilled.values.clone().fill_(torch.nan))
