"""Every command and every Python block of README and docs runs, in small, in a folder that looks like a clone.

A page is read in its order, in a clone of its own; a run that it takes for granted is made first, of one step. Models
and data sets of the hub have stand-ins of their shape. What no line of `HOW` knows fails: nothing can be written into a
page that nothing has run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
from packaging.requirements import Requirement

from lcf_lightning.cli import main
from lcf_lightning.cli.config_files import bases
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry
from tests.conftest import DATA
from tests.pages import (
    CONFIGS,
    NOT_RUN,
    PACKAGES,
    PAGES,
    ROOT,
    SHORT,
    STAND_INS,
    VALUES,
    Item,
    blocks,
    commands,
    items,
    named_files,
)
from tests.pairs import parse_only
from tests.stand_ins import load_anything, write_models


@dataclass
class Desk:
    """Where a page is read: a clone, and the Python session of its blocks."""

    clone: Path
    session: dict[str, Any] = field(default_factory=dict)
    ran: list[Item] = field(default_factory=list)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small random models, each at its hub id."""
    return write_models(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def desks(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Desk]:
    """A clone for each page, with the models in it and the data beside it."""
    found = {page.name: Desk(tmp_path_factory.mktemp(page.stem) / "clone") for page in PAGES}
    for desk in found.values():
        desk.clone.mkdir()
        (desk.clone.parent / "shared").symlink_to(DATA.parent)
        for name in ("configs", "docs", "benchmarks", "examples"):  # which a command might write into
            shutil.copytree(ROOT / name, desk.clone / name)
        linked = [ROOT / name for name in ("lcf_lightning", "callbacks", "tests", "pyproject.toml")]
        for path in (*linked, *hub.iterdir()):
            (desk.clone / path.name).symlink_to(path)
    for page in PAGES:
        for name, text in named_files(page).items():
            (found[page.name].clone / name).write_text(text)
    return found


@pytest.fixture
def desk(item: Item, desks: dict[str, Desk], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The page's own, with no hub but the stand-ins."""
    monkeypatch.chdir(desks[item.page].clone)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(desks[item.page].clone))  # a page's own files, as python does
    monkeypatch.setattr(datasets, "load_dataset", load_anything)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda location: ["all"])
    for name in () if " params " in item.text else STAND_INS:  # params counts the real ones
        monkeypatch.setitem(KNOWN_GEOMETRIES, name, Geometry(layers=3, kv_heads=2, head_dim=8))
    return desks[item.page]


def call(program: Callable[..., object], *args: Any, **options: Any) -> None:
    """A program, in this process; it must not end with an error."""
    try:
        program(*args, **options)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"exit code {ended.code}")


def require_data(text: str) -> None:
    """Skip what reads the shared data sets, itself, in its config or in its script, where there are none."""
    files = [Path(word) for word in text.split() if word.endswith((".yaml", ".py")) and Path(word).is_file()]
    files += [base for file in files if file.suffix == ".yaml" for base in bases(file)]
    if not DATA.is_dir() and any("../shared/data" in each for each in (text, *(file.read_text() for file in files))):
        pytest.skip(f"the shared data sets are not at {DATA}")


def prepare(text: str) -> None:
    """What somebody must have made who reads this: the runs that are named, and their evaluations."""
    require_data(text)
    for run, config in CONFIGS.items():
        if (config in text or f"{run}/" in text) and not Path(run, "adapter").is_dir():
            package("fit", f"--config {config}")
        if f"{run}/evaluation" in text and not Path(run, "evaluation").is_dir():
            package("evaluate", f"--config {config}")
        for seed in re.findall(rf"{run}_(\d+)/evaluation", text):
            seeded = f"--config {config} --seed_everything {seed} --trainer.default_root_dir {run}_{seed}"
            package("fit", seeded)
            package("evaluate", seeded)


def package(command: str, text: str) -> None:
    """``lcf-lightning``, short."""
    if command in ("fit", "cache"):
        require_data(text)
    elif command != "params":
        prepare(text)
    unmeasured = ["--repeats", "0"] if "--repeats 0" in text else []
    call(main, [command, *shlex.split(text), *shlex.split(SHORT[command]), *unmeasured])


def script(module: str | None, name: str, text: str) -> None:
    """A script or module of this repository, short."""
    file = Path(name.replace(".", "/") if module else name)
    if module and not file.is_dir():  # a package's __main__
        file = file.with_suffix(".py")
    prepare(f"{file} {text}")
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):  # which a program may change for itself
        patch.setattr(sys, "argv", [str(file), *shlex.split(text), *shlex.split(SHORT[name])])
        patch.syspath_prepend("." if module else str(file.parent))  # as python does
        call(runpy.run_path, str(file), run_name="__main__")


def harness(text: str) -> None:
    """The command of lm-evaluation-harness, on a few rows of ARC's shape."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    prepare(text)
    rows = [{"question": f"{i}?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"}
            for i in range(9)]  # fmt: skip
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name in ("train", "validation", "test")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda **_: splits)
        patch.setattr(sys, "argv", ["lm_eval", *shlex.split(text), "--limit", "2"])
        call(runpy.run_module, "lcf_lightning.evaluation", run_name="__main__")


def python(item: Item, desk: Desk) -> None:
    """A block, in one session with those above it on its page."""
    above = [each for each in items() if each.python and each.page == item.page]
    for each in above[: above.index(item) + 1]:
        if each not in desk.ran:
            prepare(each.text)
            if file := re.match(r"# (\S+)\.py\n", each.text):
                importlib.import_module(file[1])
            else:
                exec(compile(each.text, each.page, "exec"), desk.session)
            desk.ran.append(each)


def install(text: str) -> None:
    """Nothing is installed: each requirement must be one of this package's, or of those that CI installs."""
    metadata = importlib.metadata.metadata("lcf-lightning")
    own = {each.name: each.specifier for each in map(Requirement, metadata.get_all("Requires-Dist") or [])}
    for word in [word for word in shlex.split(text) if not word.startswith("-")]:
        asked = Requirement(re.sub(r"^\.", "lcf-lightning", word))
        assert asked.extras <= set(metadata.get_all("Provides-Extra") or []), f"{word}: no such extra"
        if asked.name in own:
            assert all(own[asked.name].contains(pin.version) for pin in asked.specifier), f"{word}: not this version"
        else:
            assert asked.name == "lcf-lightning" or word in (ROOT / ".ci" / "run").read_text().split()


def variable(name: str, value: str) -> None:
    """``NAME=$(python …)``: it must name a file."""
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    shell(f'{name}={value}; test -f "${name}"')


def shell(text: str) -> None:
    """As it stands, but that a virtual environment gets no pip."""
    subprocess.run(["bash", "-c", text.replace("-m venv ", "-m venv --without-pip ")], check=True)


def collect(text: str) -> None:
    """``pytest``: there are such tests."""
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):  # which some tests' imports change
        patch.chdir(ROOT)
        assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *shlex.split(text)]) == pytest.ExitCode.OK


def submit(options: str, job: str, text: str) -> None:
    """``sbatch``: the job's script as it is, with an srun that only says what it would start; this must parse."""
    asked = dict(re.findall(r"--(nodes|ntasks-per-node) (\d+)", options))
    slurm = {"SLURM_NNODES": asked.get("nodes", "1"), "SLURM_NTASKS_PER_NODE": asked.get("ntasks-per-node", "1")}
    started = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\n' \"$@\"; }}; export -f srun; bash {job} {text}"],
        env={**os.environ, **slurm}, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    program = started.index("python")
    assert started[program : program + 3] == ["python", "-m", "lcf_lightning"]
    assert parse_only(started[program + 3 :])["trainer"]["num_nodes"] == int(slurm["SLURM_NNODES"])


HOW: list[tuple[str, Callable[..., None]]] = [
    (r"(?:lcf-lightning|python -m lcf_lightning) ([\w-]+) ?(.*)", package),
    (r"python -m lcf_lightning\.evaluation (.+)", harness),
    (r"python (-m )?((?:benchmarks|docs|examples)/\S+\.py|tests\.\S+) ?(.*)", script),
    (r"pip install (.+)", install),
    (r"(\w+)=(\$\(python .+)", variable),
    (r"pytest ?(.*)", collect),
    (r"sbatch (.*?)(\S+\.sbatch) (.+)", submit),
    (r"((?:python3 -m venv|\.) \.venv\S*)", shell),
]
"""From a command to what runs the parts in parentheses."""


@pytest.mark.slow
@pytest.mark.parametrize("item", items(), ids=str)
def test_it_runs(item: Item, desk: Desk) -> None:
    text = item.text
    if item.python:
        return python(item, desk)
    for name, value in {**VALUES, "FOLDER": f"{desk.clone}/folder"}.items():
        text = text.replace(name, value)
    known = [(found.groups(), run) for pattern, run in HOW if (found := re.fullmatch(pattern, text))]
    if not known or re.search(r"\$\w|…", text):
        pytest.fail(f"{item.page} has a command that nothing here knows how to run: {item.text}")
    groups, run = known[0]
    run(*groups)


def test_no_block_is_passed_over() -> None:
    """What is in a block is run, or in a language in which there is nothing to run; what is excused is in a page."""
    for page in PAGES:
        languages = [language for language, _ in blocks(page) if language != "inline"]
        assert set(languages) <= {"", "bash", "python", "yaml"}
        assert page.read_text().count("```") == 2 * len(languages)
    every = [text for page in PAGES for _, block in blocks(page) for text in commands(block)]
    assert set(NOT_RUN) <= set(every)
