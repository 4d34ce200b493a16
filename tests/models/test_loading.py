from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from lcf_lightning import ModelSpec
from lcf_lightning.errors import GeometryError, ModelError
from lcf_lightning.link import identity_of
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.families import Family
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry
from lcf_lightning.models.loading import FrozenModel, geometry_of, load_frozen
from lcf_lightning.models.spec import BUILTIN, load_tokenizer
from lcf_lightning.models.store import fingerprint

Spec = Callable[[str], ModelSpec]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", Geometry(3, 2, 8)),
        ("qwen2", Geometry(2, 1, 16)),  # no head_dim in its config
        ("qwen3", Geometry(4, 4, 6)),
        ("gemma3", Geometry(5, 1, 16)),
    ],
)
def test_geometry_is_known_without_weights_and_true_of_them(spec: Spec, family: str, expected: Geometry) -> None:
    assert geometry_of(spec(family)) == expected
    assert load_frozen(spec(family)).geometry == expected


def test_frozen_means_frozen(spec: Spec) -> None:
    frozen = load_frozen(ModelSpec(spec("llama").path, dtype="bfloat16"))
    assert not frozen.model.training
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert {parameter.dtype for parameter in frozen.model.parameters()} == {torch.bfloat16}


def test_how_attention_is_computed_is_no_part_of_what_a_model_is(spec: Spec) -> None:
    """Nor of what an adapter or a kept prefill says of it."""
    specs = [replace(spec("llama"), attn_implementation=name) for name in (None, "eager", "sdpa")]
    models = [load_frozen(each) for each in specs]
    assert [model.model.config._attn_implementation for model in models] == ["sdpa", "eager", "sdpa"]
    ids = torch.arange(12).reshape(2, 6) + 5
    usual, *others = (prefill(model.model, ids, torch.ones_like(ids, dtype=torch.bool)) for model in models)
    for other in others:
        torch.testing.assert_close(other.keys, usual.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other.values, usual.values, atol=1e-5, rtol=1e-4)
    assert len({identity_of(each) for each in specs}) == 1
    assert len({model.fingerprint for model in models}) == len({fingerprint(model) for model in models}) == 1


def test_known_hub_ids_need_no_network() -> None:
    geometry = geometry_of(ModelSpec("Qwen/Qwen3-0.6B"))
    assert geometry == KNOWN_GEOMETRIES["Qwen/Qwen3-0.6B"] == Geometry(28, 8, 128)
    assert geometry.width == 1024


@pytest.mark.parametrize("name", BUILTIN)
def test_embedded_models_are_where_their_names_say(name: str) -> None:
    frozen = load_frozen(ModelSpec(name))
    assert frozen.geometry == geometry_of(ModelSpec(name))
    assert frozen.tokenizer.eos_token == "<eos>"
    assert (BUILTIN[name] / "model.safetensors").stat().st_size < 4_000_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "m", "dtype": "int8"}, "dtype='int8' of model 'm' must be one of float32, bfloat16, float16"),
        ({"path": "m", "quantization": "3bit"}, "quantization='3bit' of model 'm' must be one of 8bit, nf4"),
        (
            {"path": "m", "attn_implementation": "kernels/x"},
            "attn_implementation='kernels/x' of model 'm' must be one of",
        ),
        ({"path": "m", "attn_implementation": "flash_attention_2"}, "needs dtype bfloat16 or float16"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        ModelSpec(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["no-such-model", "./no/such/folder", "/no/such/folder", "a/b/c", "~/nowhere"])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match=f"path='{path}' is no model folder; give a hub id"):
        geometry_of(ModelSpec(path))
    with pytest.raises(ModelError, match="is no model folder"):
        load_frozen(ModelSpec(path))


def test_a_path_that_may_be_a_hub_id_is_said_to_be_neither_there_nor_here() -> None:
    with pytest.raises(ModelError, match=r"^path='runs/none' is no folder here, and cannot be read from the hub \(rev"):
        geometry_of(ModelSpec("runs/none", revision="main"))


def test_a_bar_is_for_a_terminal(
    spec: Spec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enable_progress_bar()
    load_frozen(spec("llama"))
    assert capsys.readouterr().err == ""
    assert is_progress_bar_enabled()  # for whoever else uses transformers
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_frozen(spec("llama"))
    assert "Loading weights" in capsys.readouterr().err


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config.json; give a folder saved by transformers"):
        geometry_of(ModelSpec(str(tmp_path)))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match="cannot be read"):
        geometry_of(ModelSpec(str(tmp_path)))


def test_a_folder_without_weights_is_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    (tmp_path / "config.json").write_text((model_folders["llama"] / "config.json").read_text())
    assert geometry_of(ModelSpec(str(tmp_path))) == Geometry(3, 2, 8)
    with pytest.raises(ModelError, match="cannot be read"):
        load_frozen(ModelSpec(str(tmp_path)))


def test_damaged_weights_are_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    (tmp_path / "config.json").write_text((model_folders["llama"] / "config.json").read_text())
    weights = (model_folders["llama"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_frozen(ModelSpec(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file; give the path of an existing .gguf file"):
        geometry_of(ModelSpec(str(tmp_path / "model.gguf")))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(16))
    with pytest.raises(ModelError, match="cannot be read"):
        geometry_of(ModelSpec(str(tmp_path / "broken.gguf")))


def test_an_encoder_is_refused() -> None:
    config = AutoConfig.for_model("whisper")
    with pytest.raises(GeometryError, match="not a decoder-only LM"):
        Family().geometry(AutoConfig.for_model("resnet"))
    assert config.model_type == "whisper"
    with pytest.raises(GeometryError, match="layers=0 must be a whole number between 1 and 65536"):
        Geometry(0, 1, 1)


def test_a_tokenizer_without_end_of_sequence_is_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    for file in model_folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="without an end-of-sequence token"):
        load_tokenizer(ModelSpec(str(tmp_path)))
    assert load_tokenizer(ModelSpec(str(model_folders["llama"]))).eos_token_id == 1


@pytest.mark.parametrize("quantization", ["8bit", "nf4"])
def test_quantised_models_load_frozen(quantization: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    frozen = load_frozen(ModelSpec("tiny-sharer", quantization=quantization))
    with torch.no_grad():
        logits = frozen.model(torch.tensor([[2, 3, 4]])).logits
    assert torch.isfinite(logits).all()
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    linear = frozen.model.model.layers[0].self_attn.q_proj
    assert type(linear).__module__.startswith("bitsandbytes")


def test_a_fingerprint_is_of_the_weights_whatever_they_are_called(spec: Spec) -> None:
    model, twin = load_frozen(spec("llama")), load_frozen(spec("llama"))
    state = {f"renamed.{name}": tensor for name, tensor in twin.model.state_dict().items()}
    tied = state | {"lm_head.again": state["renamed.lm_head.weight"]}
    renamed = [SimpleNamespace(state_dict=lambda found=found: found) for found in (state, tied)]
    for each in renamed:
        assert FrozenModel(model.spec, each, model.tokenizer).fingerprint == model.fingerprint  # type: ignore[arg-type]
    swapped = load_frozen(spec("llama"))
    layers = swapped.model.model.layers
    layers[0], layers[1] = layers[1], layers[0]
    other = load_frozen(spec("llama"))
    with torch.no_grad():
        other.model.lm_head.weight[0, 0] += 1e-6
    half = load_frozen(replace(model.spec, dtype="float16"))
    assert len({each.fingerprint for each in (model, swapped, other, half, load_frozen(spec("qwen2")))}) == 5


def test_what_makers_like_for_their_chats_is_no_setting_of_ours(model_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(model_folders["llama"], tmp_path / "talker")
    likes = {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.8, "num_beams": 3, "eos_token_id": [1, 7]}
    (tmp_path / "talker" / "generation_config.json").write_text(json.dumps(likes))
    loaded = load_frozen(ModelSpec(str(tmp_path / "talker")))
    assert loaded.stop_ids == (1, 7)
    found = loaded.model.generation_config
    assert (found.repetition_penalty, found.num_beams, found.do_sample) == (None, None, None)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    """Nor is anybody asked whether it should be."""
    folder = Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="cannot be read"):
        load_frozen(ModelSpec(str(folder)))
    assert not (tmp_path / "ran").exists()


def test_a_folder_has_no_revision(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"revision='main' of model '.*llama' must be null: that is no hub id"):
        load_frozen(ModelSpec(str(model_folders["llama"]), revision="main"))
