"""README's four lines, as somebody runs them who has installed the wheel and has a trained adapter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.test_readme import ROOT, blocks

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


WHERE = "import lcf_lightning.callbacks as c\nprint(__import__('lcf_lightning').__file__, c.__file__, sep='\\n')"


def said(code: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """What some code prints that is run in a folder."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves its build folder beside what it builds
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "build", "*.egg-info"))
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_four_lines_run_after_the_quickstart_and_from_the_wheel_in_an_empty_folder(
    wheel: Path, quickstart: Path, tmp_path: Path
) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    shutil.copytree(quickstart / "adapter", empty / "runs" / "quickstart" / "adapter")
    code, _, more, _ = blocks(ROOT / "README.md", "python")  # the others need other adapters
    assert len(code.strip().splitlines()) <= 6
    clone = said(code, quickstart.parents[1], os.environ)
    installed = said(code + WHERE, empty, {**os.environ, "PYTHONPATH": str(site)})
    assert clone == ["tea"]
    first, *rest = said(more, quickstart.parents[1], os.environ)
    assert first.startswith("lamp 17 2 {'receiver_prefill': ")
    assert rest == ["lamp", "['ruby', 'soup']"]
    assert installed[0] == "tea"
    assert all(line.startswith(str(site)) for line in installed[1:])  # neither this clone nor its editable install
    assert len(installed) == 3


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lcf_lightning", next(top for top in tops if top.endswith(".dist-info"))}
    for needed in (
        "__init__.py",
        "__init__.pyi",
        "py.typed",
        "message.py",
        "callbacks/checkpoint.py",
        "models/decoding.py",
    ):
        assert f"lcf_lightning/{needed}" in names
    assert sum("assets/tiny-" in name for name in names) >= 6
