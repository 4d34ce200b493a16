from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lcf_lightning.callbacks import AdapterExport

from lcf_lightning import Channel, ModelSpec
from lcf_lightning.errors import AdapterFileError, GeometryError
from lcf_lightning.evaluation.answering import run_arms
from lcf_lightning.evaluation.arms import ArmCaches
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


@pytest.fixture
def trained(spec: Spec, tmp_path: Path) -> Path:
    module = small_module(spec("llama"), spec("qwen3"))
    data = small_data(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, AdapterExport()).fit(module, datamodule=data)
    return tmp_path / "adapter"


def first_line(text: str) -> str:
    """What an evaluation counts of an answer."""
    return text.split("\n")[0].strip()


def test_four_lines_answer_as_the_evaluation_does(spec: Spec, trained: Path) -> None:
    channel = Channel.from_pretrained(trained)
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    batches = list(data.test_dataloader())
    for batch in batches:
        example = batch.examples[0]
        message = channel.send([passage[0] for passage in example.sharer], question=example.question)
        answer = channel.receive(message, example.question, [p[0] for p in example.receiver], max_new_tokens=6)
        expected = run_arms(ArmCaches(channel, batch), ["message"], 6)[0]
        assert first_line(answer.text) == expected.prediction
    assert len(batches) == 12


def test_a_message_has_a_fixed_size(spec: Spec, trained: Path) -> None:
    channel = Channel.from_pretrained(trained)
    short, long = channel.send(["one"], "two"), channel.send(["one two three"] * 9, "four")
    assert short.keys.shape == long.keys.shape == (4, 1, 2, 1, 8)
    assert not torch.equal(short.values, long.values)


def test_nothing_is_remembered_between_calls(spec: Spec, trained: Path) -> None:
    channel = Channel.from_pretrained(trained)
    message = channel.send(["likes ada tea ."], "likes ada")
    before = channel.receive(message, "likes ada")
    channel.receive(channel.send(["owns bob lamp ."], "owns bob"), "owns bob", ["fears cleo fox ."])
    again = channel.send(["likes ada tea ."], "likes ada")
    assert torch.equal(message.keys, again.keys)
    assert channel.receive(again, "likes ada").text == before.text


def test_a_model_that_is_not_the_adapters_is_refused(
    trained: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    config = trained / "adapter_config.json"
    shutil.copytree(model_folders["gemma3"], tmp_path / "other")
    config.write_text(config.read_text().replace(str(model_folders["qwen3"]), str(tmp_path / "other")))
    with pytest.raises(GeometryError, match="receiver of this adapter .*: layers is 5, expected 4; kv_heads is 1"):
        Channel.from_pretrained(trained)
    with pytest.raises(AdapterFileError, match="has no adapter_config.json"):
        Channel.from_pretrained(tmp_path / "nowhere")
