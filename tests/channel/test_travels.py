"""An adapter on another machine: its models lie elsewhere, are loaded already, or are held otherwise."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lcf_lightning import Channel, ModelSpec
from lcf_lightning.errors import GeometryError, LCFError, ModelError, SettingError
from lcf_lightning.models.loading import FrozenModel, load_frozen
from tests.channel.conftest import FACTS
from tests.pairs import small_module

Folders = dict[str, Path]


def loaded(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As a user of transformers has them."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def said(channel: Channel) -> tuple[bytes, str]:
    message = channel.send(FACTS, "likes ada")
    return message.to_bytes(), channel.receive(message, "likes ada", FACTS[:1], max_new_tokens=4).text


@pytest.fixture
def moved(trained: Path, model_folders: Folders) -> Path:
    """The adapter, where the paths that it names are nothing."""
    config = trained / "lcf_config.json"
    for name in ("llama", "qwen3"):
        config.write_text(config.read_text().replace(str(model_folders[name]), f"/elsewhere/than/{name}"))
    return trained


def test_models_may_lie_elsewhere(moved: Path, model_folders: Folders, tmp_path: Path) -> None:
    sharer, receiver = (shutil.copytree(model_folders[name], tmp_path / f"my-{name}") for name in ("llama", "qwen3"))
    with pytest.raises(ModelError, match=r"path='/elsewhere/than/llama' is no .* lies elsewhere: .*, sharer=PATH\)\.$"):
        Channel.from_pretrained(moved, receiver=receiver)
    with pytest.raises(ModelError, match="path='/elsewhere/than/qwen3' is no model folder"):
        Channel.from_pretrained(moved, sharer=sharer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = Channel.from_pretrained(moved, sharer=str(sharer), receiver=receiver)
        told, answer = said(whole)
        alone = Channel.from_pretrained(moved, sides="sharer", sharer=sharer)
        assert alone.send(FACTS, "likes ada").to_bytes() == told
    assert said(Channel.from_pretrained(moved, sharer=loaded(sharer), receiver=loaded(receiver))) == (told, answer)
    frozen = load_frozen(ModelSpec(str(receiver)))
    again = Channel.from_pretrained(moved, sharer=whole.link.sharer, receiver=frozen)
    assert said(again) == (told, answer)
    assert (again.link.sharer, again.link.receiver) == (whole.link.sharer, frozen)


def test_a_loaded_model_is_frozen_and_decodes_greedily(moved: Path, model_folders: Folders) -> None:
    model, tokenizer = loaded(model_folders["qwen3"])
    model.train()
    model.generation_config.update(do_sample=True, temperature=0.6, repetition_penalty=1.8, eos_token_id=[1, 7])
    channel = Channel.from_pretrained(moved, sides="receiver", receiver=(model, tokenizer))
    assert channel.link.receiver.model is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert channel.link.receiver.stop_ids == (1, 7)
    assert model.generation_config.repetition_penalty is None


def test_other_weights_are_refused_wherever_they_come_from(moved: Path, model_folders: Folders, tmp_path: Path) -> None:
    model, tokenizer = loaded(model_folders["qwen3"])
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    for other in (tmp_path / "tuned", (model, tokenizer), FrozenModel.of(model, tokenizer)):
        with pytest.raises(ModelError, match="has other weights, or another tokenizer, than the receiver of"):
            Channel.from_pretrained(moved, sides="receiver", receiver=other)
    for other in (model_folders["gemma3"], loaded(model_folders["gemma3"])):
        with pytest.raises(GeometryError, match="receiver of this adapter .*: layers is 5, expected 4"):
            Channel.from_pretrained(moved, sides="receiver", receiver=other)


def test_models_may_be_held_otherwise_and_what_is_not_checked_is_said(
    trained: Path, model_folders: Folders, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        half = Channel.from_pretrained(trained, dtype="bfloat16")  # the models that the adapter names
    assert half.link.sharer.model.dtype == half.link.receiver.model.dtype == torch.bfloat16
    assert said(half)[0] != said(Channel.from_pretrained(trained))[0]
    receiver = model_folders["qwen3"]
    for other, options in ((receiver, {"dtype": "float16"}), (loaded(receiver)[0].half(), {})):
        given: Any = other if isinstance(other, Path) else (other, loaded(receiver)[1])
        with pytest.warns(
            UserWarning, match=r"\(float16\) is taken for '.*', not held as in tr.* and no wei"
        ) as warned:
            channel = Channel.from_pretrained(trained, sides="receiver", receiver=given, **options)
        assert [warning.filename for warning in warned] == [__file__]
        assert channel.link.receiver.model.dtype == torch.float16
    config = json.loads((trained / "lcf_config.json").read_text())
    config["receiver"] |= {"fingerprint": None, "quantization": "8bit"}  # as of a quantised model
    (trained / "lcf_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="of unknown fingerprint: its layers, heads and head size were compared"):
        plain = Channel.from_pretrained(trained, sides="receiver", receiver=receiver, quantization="none")
    assert plain.link.receiver.spec.quantization is None


@pytest.mark.parametrize("quantization", [pytest.param("8bit", marks=pytest.mark.slow), "nf4"])
def test_models_may_be_quantised(trained: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    channel = Channel.from_pretrained(trained, quantization=quantization)
    linear = channel.link.receiver.model.model.layers[0].self_attn.q_proj
    assert type(linear).__module__.startswith("bitsandbytes")
    assert (
        FrozenModel.of(channel.link.receiver.model, channel.link.receiver.tokenizer).spec.quantization == quantization
    )
    assert said(channel)


def test_a_device_that_is_not_there_is_one_sentence(
    trained: Path, model_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcf_lightning.sides.load_frozen", lambda *_: pytest.fail("a model was loaded"))
    for device in ("gpu", "cuda:77", "", 5.5):
        with pytest.raises(SettingError, match=f"device='{device}' is none that can be used here; take auto") as caught:
            Channel.from_pretrained(trained, device)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    for device in ("vulkan", "warp"):  # of which torch would list all that it has a name for
        with pytest.raises(SettingError, match=rf"^device='{device}' is .* here; take auto or cpu( or \w+)?\.$"):
            Channel.from_pretrained(trained, device)
    away = AutoModelForCausalLM.from_pretrained(model_folders["qwen3"]).to("meta")
    with pytest.raises(SettingError, match=r"device='cpu' must be 'meta', where the given receiver is\.$"):
        Channel.from_pretrained(trained, "cpu", receiver=(away, loaded(model_folders["qwen3"])[1]))


def test_auto_is_where_a_given_model_is_or_the_accelerator(
    trained: Path, model_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    channel = Channel.from_pretrained(trained, "auto")
    assert {channel.link.sharer.device, channel.adapter.gates.logits.device} == {torch.device("cpu")}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    near = Channel.from_pretrained(trained, "auto", receiver=loaded(model_folders["qwen3"]))
    assert {near.link.sharer.device, near.link.receiver.device} == {torch.device("cpu")}
    asked: list[torch.device] = []
    monkeypatch.setattr("lcf_lightning.sides.load_frozen", lambda _, device: asked.append(device))
    with pytest.raises(AttributeError):
        Channel.from_pretrained(trained, "auto")
    assert set(asked) == {torch.device("meta")}


WRONG: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda folder: {"receiver": loaded(folder)[0]}, "receiver= of type Qwen3ForCausalLM must be a path or hub id, "),
    (lambda folder: {"receiver": (folder, folder)}, r"receiver= of type tuple must be a path .* \(model, tokenizer\)"),
    (lambda folder: {"sharer": ModelSpec("x")}, "sharer= of type ModelSpec must be a path"),
    (lambda folder: {"receiver": folder, "sides": "sharer"}, "receiver= must be left out with sides='sharer'"),
    (lambda folder: {"quantization": "4bit"}, "quantization='4bit' must be 8bit, nf4, none, or None"),
    (lambda folder: {"dtype": "half"}, "dtype='half' of model '.*' must be one of float32, bfloat16, float16"),
    (
        lambda folder: {"receiver": (AutoModel.from_pretrained(folder), loaded(folder)[1])},
        "is a Qwen3Model, which generates no text",
    ),
    (
        lambda folder: {"receiver": (loaded(folder)[0].double(), loaded(folder)[1])},
        "dtype='float64' of model '.*qwen3' must be one of",
    ),
]  # fmt: skip


def test_what_is_no_model_is_refused(trained: Path, model_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcf_lightning.sides.load_frozen", lambda *_: pytest.fail("a model was loaded"))
    for options, problem in WRONG:
        with pytest.raises(LCFError, match=problem):
            Channel.from_pretrained(trained, **options(model_folders["qwen3"]))


def test_files_can_be_read_by_whom_the_umask_lets(
    spec: Callable[[str], ModelSpec], trained: Path, tmp_path: Path
) -> None:
    """What travels is read by somebody else."""
    message = Channel.from_pretrained(trained).send(FACTS, "likes ada")
    before = os.umask(0o027)
    try:
        small_module(spec("llama"), spec("qwen3")).adapter.save_pretrained(tmp_path / "new" / "adapter")
        message.save(tmp_path / "new" / "note.lcf")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "new").rglob("*") if file.is_file()]
    assert len(files) == 4
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}
    assert (tmp_path / "new" / "adapter").stat().st_mode & 0o777 == 0o750
