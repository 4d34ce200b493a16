"""What data-parallel training promises, on two CPU processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lcf_lightning import CacheAdapter
from lcf_lightning.cli import main
from tests.distributed.launch import run_in_two_processes
from tests.distributed.spy import reports, spied

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "--data.eval_batch_size", "3", "--data.source.validation_size", "7", "--data.source.test_size", "7",
    "--trainer.max_steps", "3", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1",
    "--trainer.enable_progress_bar", "false",
    "--model.adapter.gate_noise", "none",  # each rank draws its own
]  # fmt: skip
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
ONE = ["--data.batch_size", "4"]
ACCUMULATED = ["--config", str(CONFIGS / "quickstart.yaml"), *SMALL, "--trainer.accumulate_grad_batches", "2"]
SHARED = ["--config", str(CONFIGS / "quickstart_shared.yaml"), *SMALL]
OTHERS = {
    "shared": SHARED,
    "shared_closed_and_pruned": [*SHARED, "--model.adapter.gate_init", "-5", "--model.adapter.layers", "[0,2]"],
    "c2c_pruned": [*SHARED, "--model.adapter.fuser", "c2c", "--model.adapter.layers", "[1,3]"],
    "carry": ["--config", str(CONFIGS / "quickstart_blind.yaml"), *SMALL],
    "prefix": ["--config", str(CONFIGS / "quickstart_blind.yaml"), *SMALL, "--model.adapter.pooler", "prefix"],
    "by_token": [  # AdamW would hide a factor, and so would clipping
        "--config", str(CONFIGS / "quickstart.yaml"), "--data.source", "tests.test_training.Uneven",
        "--data.source.train_size", "64", *SMALL, "--model.loss_weighting", "token",
        "--model.optimizer", "torch.optim.SGD",
        "--model.optimizer.lr", "0.1", "--trainer.gradient_clip_val", "null",
    ],
    "closed": ["--config", str(CONFIGS / "quickstart.yaml"), *SMALL, "--model.adapter.gate_init", "-5"],
}  # fmt: skip


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run made by one process and by two, and what it predicts."""
    folder = tmp_path_factory.mktemp("accumulated")
    two = [*ACCUMULATED, *TWO, "--trainer.default_root_dir", str(folder / "two")]
    one = [*ACCUMULATED, *ONE, "--trainer.default_root_dir", str(folder / "one")]
    run_in_two_processes([["fit", *two, *spied(folder / "spied")], ["predict", *two]], folder)
    main(["fit", *one])
    main(["predict", *one])
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of each of `OTHERS`, made by two processes."""
    folder = tmp_path_factory.mktemp("others")
    commands = [
        ["fit", *arguments, *TWO, "--trainer.default_root_dir", str(folder / name), *spied(folder / f"{name}_spied")]
        for name, arguments in OTHERS.items()
    ]
    run_in_two_processes(commands, folder)
    return folder


def require_same_adapter(one: Path, two: Path) -> None:
    ours, theirs = (CacheAdapter.from_pretrained(folder / "adapter").state_dict() for folder in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda said, name=name: name + said)


def require_same_figures(one: Path, two: Path) -> None:
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    for group in ("arms", "own_questions"):
        assert ours[group].keys() == theirs[group].keys()
        for arm, figures in ours[group].items():
            assert theirs[group][arm] == pytest.approx(figures, abs=1e-4), arm


def validations(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as stored:
        rows = [row for row in csv.DictReader(stored) if row["val/loss"]]
    timed = "speedup"
    return [
        {name: float(row[name]) for name in row if name.startswith("val/") and timed not in name and row[name]}
        for row in rows
    ]


def predictions(run: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_two_processes_that_accumulate_train_the_adapter_of_one(accumulated: Path) -> None:
    require_same_adapter(accumulated / "one", accumulated / "two")
    first, second = reports(accumulated / "spied")
    assert first["digest"] == second["digest"]  # the ranks' adapters are equal to the bit
    assert first["losses"] != second["losses"]  # though each saw examples of its own
    both = [set(a) | set(b) for a, b in zip(first["trained"], second["trained"], strict=True)]
    assert [len(batch) for batch in both] == [4] * 6


def test_only_the_adapters_gradients_travel_and_once_a_step(accumulated: Path) -> None:
    for seen in reports(accumulated / "spied"):
        size = seen["adapter"]
        assert size == CacheAdapter.from_pretrained(accumulated / "two" / "adapter").parameter_counts()["total"]
        assert seen["wrapped"] == size < seen["frozen"]  # neither frozen model is in DDP's hands
        assert seen["begin"] == size  # nor broadcast when it begins
        assert seen["gradients"] == [0, size] * 3  # the first of two accumulated batches reduces nothing
        others = [all_ - gradients for all_, gradients in zip(seen["traffic"], seen["gradients"], strict=True)]
        assert max(others) <= 2  # whether a rank was told to stop


def test_an_uneven_evaluation_counts_every_example_once(accumulated: Path) -> None:
    """Seven examples, three a batch: one rank has two batches, the other one."""
    validated = [seen["validated"] for seen in reports(accumulated / "spied")]
    assert [[len(batch) for batch in batches] for batches in validated] == [[3, 1], [3]]
    assert len({name for batches in validated for batch in batches for name in batch}) == 7
    ours, theirs = (validations(accumulated / run) for run in ("one", "two"))
    assert len(ours) == len(theirs) > 0
    for one, two in zip(ours, theirs, strict=True):
        assert {"val/loss", "val/message/exact_match"} <= one.keys()
        assert two == pytest.approx(one, abs=1e-4)
    require_same_figures(accumulated / "one", accumulated / "two")


def test_two_processes_predict_what_one_predicts(accumulated: Path) -> None:
    ours, theirs = predictions(accumulated / "one"), predictions(accumulated / "two")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 7
    for name, row in ours.items():
        assert theirs[name]["loss"] == pytest.approx(row["loss"], abs=1e-4)
        assert theirs[name]["text"] == row["text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_adapter_trains_alike_in_two_processes_without_unused_parameters(
    others: Path, name: str, tmp_path: Path
) -> None:
    """Closed gates and pruned layers too: plain ``ddp`` finds a gradient for every parameter."""
    main(["fit", *OTHERS[name], *ONE, "--trainer.default_root_dir", str(tmp_path / "one")])
    require_same_adapter(tmp_path / "one", others / name)
    require_same_figures(tmp_path / "one", others / name)
    seen = reports(others / f"{name}_spied")
    assert [rank["find_unused_parameters"] for rank in seen] == [False, False]
    assert [rank["gradients"] for rank in seen] == [[seen[0]["adapter"]] * 3] * 2
    assert seen[0]["digest"] == seen[1]["digest"]
