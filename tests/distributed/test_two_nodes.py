"""Two nodes, simulated on one machine: two launchers of one process each, which share a run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lcf_lightning import CacheAdapter
from lcf_lightning.cli import main
from tests.distributed.launch import free_port, run_all, torchrun
from tests.distributed.spy import reports, spied

QUICK = [
    "fit", "--config", str(Path(__file__).parents[2] / "configs" / "quickstart.yaml"), "--data.eval_batch_size", "3",
    "--data.source.validation_size", "7", "--data.source.test_size", "7", "--trainer.max_steps", "4",
    "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
    "--model.adapter.gate_noise", "none",  # each rank draws its own
]  # fmt: skip
NODES = [
    "--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp",
    "--data.batch_size", "2", "--trainer.default_root_dir", "runs/two",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two nodes made a run in ``runs/two`` and one process the same in ``runs/one``."""
    folder = tmp_path_factory.mktemp("nodes")
    port = str(free_port())
    node = ["--nnodes", "2", "--nproc-per-node", "1", "--master-port", port]
    command = ["-m", "lcf_lightning", *QUICK, *NODES, *spied(folder / "spied")]
    run_all([torchrun(*node, "--node-rank", rank, *command) for rank in ("0", "1")], folder, seconds=240)
    main([*QUICK, "--data.batch_size", "4", "--trainer.default_root_dir", str(folder / "runs" / "one")])
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stored:
        return list(csv.DictReader(stored))


def test_two_nodes_train_the_adapter_of_one_process(folder: Path) -> None:
    runs = folder / "runs"
    one, two = (CacheAdapter.from_pretrained(runs / run / "adapter").state_dict() for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
    ours, theirs = (json.loads((runs / run / "summary.json").read_text()) for run in ("one", "two"))
    assert ours["steps"] == theirs["steps"] == 4
    for arm, figures in ours["arms"].items():
        assert theirs["arms"][arm] == pytest.approx(figures, abs=1e-4)


def test_each_node_has_a_rank_and_examples_of_its_own(folder: Path) -> None:
    seen: list[dict[str, Any]] = reports(folder / "spied")
    assert [rank["rank"] for rank in seen] == [0, 1]
    assert [(rank["node"], rank["local_rank"], rank["world_size"]) for rank in seen] == [(0, 0, 2), (1, 0, 2)]
    trained = [{name for batch in rank["trained"] for name in batch} for rank in seen]
    assert [len(names) for names in trained] == [8, 8]
    assert not trained[0] & trained[1]
    assert seen[0]["digest"] == seen[1]["digest"]


def test_two_nodes_leave_one_run_folder_without_duplicate_rows(folder: Path) -> None:
    runs = folder / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]  # none was moved aside
    assert [file.relative_to(runs / "two") for file in (runs / "two").rglob("*.csv")] == [
        file.relative_to(runs / "one") for file in (runs / "one").rglob("*.csv")
    ]
    ours, theirs = rows(runs / "one" / "metrics.csv"), rows(runs / "two" / "metrics.csv")
    assert [row["step"] for row in theirs if row["train/loss"]] == ["0", "1", "2", "3"]
    assert [row["step"] for row in theirs] == [row["step"] for row in ours]
    assert len(list((runs / "two" / "tensorboard").glob("events*"))) == len(
        list((runs / "one" / "tensorboard").glob("events*"))
    )
