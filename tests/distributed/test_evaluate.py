"""``evaluate`` and ``prune`` by two processes on the CPU find what one does, and each writes files of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lcf_lightning.cli import main
from lcf_lightning.errors import SettingError
from lcf_lightning.files import FolderLock
from tests.distributed.launch import ROOT, free_port, run_in_two_processes, torchrun

CONFIG = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.enable_progress_bar", "false"]
SIZES = ["--data.eval_batch_size", "3", "--data.source.validation_size", "7", "--data.source.test_size", "17"]
TWO = ["--trainer.devices", "2"]
ARMS = "own_context,message,mismatched,permuted,noise,t2t_3,t2t_3_form"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process has fitted ``run``, and one and two have evaluated and pruned it."""
    folder = tmp_path_factory.mktemp("evaluations")
    main(["fit", *CONFIG, *SIZES, "--data.batch_size", "16", "--trainer.max_steps", "60",
          "--trainer.default_root_dir", str(folder / "run")])  # fmt: skip
    commands = {name: [evaluation(folder, name), pruning(folder, name)] for name in ("one", "two")}
    for command in commands["one"]:
        main(command)
    run_in_two_processes([[*command, *TWO] for command in commands["two"]], folder)
    return folder


def evaluation(folder: Path, output: str) -> list[str]:
    return ["evaluate", *CONFIG, *SIZES, "--trainer.default_root_dir", str(folder / "run"), "--repeats", "1",
            "--arms", ARMS, "--output", str(folder / output)]  # fmt: skip


def pruning(folder: Path, output: str) -> list[str]:
    return ["prune", *CONFIG, *SIZES, "--trainer.default_root_dir", str(folder / "run"), "--keep", "2",
            "--output", str(folder / f"{output}_pruned")]  # fmt: skip


def rows(output: Path) -> list[str]:
    """Every answer, in an order that does not depend on who wrote it."""
    return sorted((output / "predictions.jsonl").read_text().splitlines())


def figures(output: Path) -> dict[str, Any]:
    report = json.loads((output / "report.json").read_text())
    return {name: report[name] for name in report if name not in ("facts", "latency")}


def test_two_processes_find_what_one_finds(folder: Path) -> None:
    assert rows(folder / "two") == rows(folder / "one")  # to the bit: batches are the same
    assert len(rows(folder / "two")) == 17 * len(ARMS.split(","))
    assert figures(folder / "two") == figures(folder / "one")
    both = [json.loads((folder / name / "report.json").read_text()) for name in ("one", "two")]
    assert [report["facts"]["processes"] for report in both] == [1, 2]
    assert both[0]["latency"].keys() == both[1]["latency"].keys()
    assert {file.name for file in (folder / "two").iterdir()} == {file.name for file in (folder / "one").iterdir()}


def test_two_processes_prune_as_one(folder: Path) -> None:
    one, two = (folder / f"{name}_pruned" for name in ("one", "two"))
    ours, theirs = (json.loads((output / "pruning.json").read_text()) for output in (one, two))
    assert {**theirs, "command": ""} == {**ours, "command": ""}
    weights = "lcf_adapter.safetensors"
    assert (two / weights).read_bytes() == (one / weights).read_bytes()


@pytest.fixture(scope="module")
def cut(folder: Path) -> Path:
    """An evaluation by two processes that were killed when both had written answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()))
    command = [*launcher, "-m", "lcf_lightning", *evaluation(folder, "cut"), *TWO]
    files = [folder / "cut" / name for name in ("predictions.jsonl", "predictions_1.jsonl")]
    with (folder / "cut.log").open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as running:
        deadline = time.monotonic() + 300
        while not all(file.exists() and file.stat().st_size for file in files) and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert running.poll() is None, (folder / "cut.log").read_text()
        with pytest.raises(SettingError, match="is being written by another process"):
            FolderLock(folder / "cut", "output").__enter__()
        running.terminate()
    assert not (folder / "cut" / "report.json").exists()
    first, *more = files[1].read_text().split("\n")[:-1]
    assert json.loads(first)["arm"] == "own_context"  # which no sharer writes a text for
    files[1].write_text("\n".join([first.replace('"text": ""', '"text": "kept"'), *more, '{"id": "torn']))
    return folder / "cut"


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_evaluation_goes_on_with_any_number_of_processes(
    folder: Path, cut: Path, processes: int
) -> None:
    name = f"resumed_by_{processes}"
    shutil.copytree(cut, folder / name)
    if processes == 1:
        main(evaluation(folder, name))
    else:
        run_in_two_processes([[*evaluation(folder, name), *TWO]], folder)
    found = rows(folder / name)
    kept = {line for file in cut.glob("predictions*.jsonl") for line in file.read_text().split("\n")[:-1]}
    assert kept <= set(found)
    assert sorted(line.replace('"text": "kept"', '"text": ""') for line in found) == rows(folder / "one")
    assert figures(folder / name) == figures(folder / "one")
    assert list((folder / name).glob("predictions_*")) == []


def test_answers_of_another_adapter_are_not_put_together(folder: Path, cut: Path) -> None:
    """Where only the second process has written some."""
    shutil.copytree(cut, folder / "other")
    (folder / "other" / "predictions.jsonl").unlink()
    main([*evaluation(folder, "other"), "--data.prompts.spans", "sentence", "--repeats", "0"])
    (aside,) = folder.glob("other-*")
    assert (aside / "predictions_1.jsonl").is_file()
    assert len(rows(folder / "other")) == len(rows(folder / "one"))


def test_the_other_processes_are_started_where_nobody_has(folder: Path) -> None:
    """As ``fit`` starts them, on one machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lcf_lightning", *evaluation(folder, "started"), *TWO]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert rows(folder / "started") == rows(folder / "one")
