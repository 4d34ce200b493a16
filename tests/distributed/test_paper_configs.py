"""The configs of the paper's runs, dry on two CPU processes: stand-ins of the models, rows of the hub's shape."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lcf_lightning import ModelSpec
from lcf_lightning.models.geometry import Geometry
from lcf_lightning.models.loading import KNOWN_GEOMETRIES, geometry_of
from tests.conftest import byte_tokenizer
from tests.data.sources.rows import hub_row, write
from tests.distributed.launch import run_in_two_processes
from tests.distributed.spy import reports, spied

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = ["qwen3_hotpotqa_lcfx", "qwen_openhermes_lcf128", "qwen_openhermes_lcf256", "qwen_openhermes_c2c"]
SMALL = {"hidden_size": 28, "intermediate_size": 32, "max_position_embeddings": 4096}

pytestmark = pytest.mark.slow


def qwen2(vocabulary: int) -> PreTrainedModel:
    """Qwen2.5-0.5B, with 2 of 24 layers and a small residual stream."""
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, num_hidden_layers=2, num_attention_heads=14, num_key_value_heads=2, head_dim=64, **SMALL
    ))  # fmt: skip


def qwen3(vocabulary: int) -> PreTrainedModel:
    """Qwen3-0.6B, with 3 of 28 layers and a small residual stream."""
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocabulary, num_hidden_layers=3, num_attention_heads=16, num_key_value_heads=8, head_dim=128, **SMALL
    ))  # fmt: skip


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By hub id, the folder of a random model of the same class, heads and head size."""
    root = tmp_path_factory.mktemp("stand_ins")
    folders = {}
    builders = {"Qwen/Qwen2.5-0.5B-Instruct": (qwen2, 300), "Qwen/Qwen3-0.6B": (qwen3, 320)}
    for seed, (name, (build, vocabulary)) in enumerate(builders.items()):
        torch.manual_seed(seed)
        folders[name] = root / name.split("/")[1]
        tokenizer = byte_tokenizer(vocabulary)
        build(len(tokenizer)).to(torch.bfloat16).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def chat_row(index: int) -> dict[str, object]:
    """A row in the shape of OpenHermes-2.5 on the hub."""
    turns = [("human", f"How many is {index} and one?"), ("gpt", f"It is {index + 1}.")]
    return {"id": f"c{index}", "conversations": [{"from": role, "value": text} for role, text in turns]}


@pytest.fixture(scope="module")
def runs(stand_ins: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each config has made its dry run."""
    folder = tmp_path_factory.mktemp("paper")
    hotpot = write(folder / "hotpot.jsonl", [hub_row(index) for index in range(540)])  # 512 of them for validation
    chats = write(folder / "chats.jsonl", [chat_row(index) for index in range(250)])  # 1 % of them for validation
    commands = []
    for config in PAPER:
        sharer = "Qwen/Qwen3-0.6B" if "hotpotqa" in config else "Qwen/Qwen2.5-0.5B-Instruct"
        files = ["--data.source.train", hotpot, "--data.source.test", hotpot] if "hotpotqa" in config else [
            "--data.source.train", chats, "--data.benchmarks", "null"
        ]  # fmt: skip
        commands.append([
            "fit", "--config", str(CONFIGS / f"{config}.yaml"), *files,
            "--model.sharer.path", str(stand_ins[sharer]), "--model.receiver.path", str(stand_ins["Qwen/Qwen3-0.6B"]),
            "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "2",
            "--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false",
            "--trainer.default_root_dir", str(folder / "runs" / config), *spied(folder / "spied" / config),
        ])  # fmt: skip
    run_in_two_processes(commands, folder)
    return folder


def test_the_stand_ins_have_the_heads_of_the_models(stand_ins: dict[str, Path]) -> None:
    for name, folder in stand_ins.items():
        real, here = KNOWN_GEOMETRIES[name], geometry_of(ModelSpec(str(folder)))
        assert here == Geometry(here.layers, real.kv_heads, real.head_dim)
        assert here.layers < 4
        heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
        assert heads == {"Qwen/Qwen2.5-0.5B-Instruct": 14, "Qwen/Qwen3-0.6B": 16}[name]


@pytest.mark.parametrize("config", PAPER)
def test_a_config_of_the_paper_trains_and_validates_on_two_processes(runs: Path, config: str) -> None:
    first, second = reports(runs / "spied" / config)
    per_layer = {"lcf128": 692_626, "lcf256": 1_907_474, "c2c": 17_066_002, "lcfx": 924_050}[config.rsplit("_")[-1]]
    assert first["wrapped"] == first["adapter"] == 3 * per_layer  # as wide as in the paper
    for rank in (first, second):
        assert rank["gradients"] == [rank["adapter"]]
        assert [math.isfinite(loss) for loss in rank["losses"]] == [True]
        assert len(rank["validated"]) == 1
    assert first["digest"] == second["digest"]
    assert not set(first["trained"][0]) & set(second["trained"][0])


def test_a_dry_run_leaves_no_files(runs: Path) -> None:
    """Nothing in the run folders, and nothing beside them but what the test itself put there."""
    assert not [path for path in (runs / "runs").rglob("*") if path.is_file()]
    assert {path.name for path in runs.iterdir()} - {"runs"} == {
        "hotpot.jsonl", "chats.jsonl", "spied", "commands.json", "launcher_0.log"
    }  # fmt: skip
