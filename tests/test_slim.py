"""What an import brings in, and an adapter that is used where nothing for training is installed."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "kept_0_1_0" / "span"
IMPORTED = "import sys, lcf_lightning; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
USED = f"""
import json, sys
from pathlib import Path
from lcf_lightning import CacheAdapter, Channel, Message
folder = Path({str(FOLDER)!r})
row = json.loads((folder / "expected.json").read_text())["questions"][0]
channel = Channel.from_pretrained(folder)
message = Message.from_bytes(channel.send(row["sharer"], row["told"]).to_bytes(), origin=channel.origin)
answer = channel.receive(message, row["question"], row["receiver"], 4)
assert answer.text == row["answer"], answer.text
channel.adapter.save_pretrained("saved")
try:
    from lcf_lightning import LCFModule
except ModuleNotFoundError as error:
    print(error)
sys.argv = ["lcf-lightning", "fit"]
from lcf_lightning.__main__ import main
main()
"""


def run(code: str, *flags: str, path: tuple[Path, ...] = (), **options: str) -> subprocess.CompletedProcess[str]:
    found = {"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env={**os.environ, **found}, capture_output=True, text=True, timeout=300,
        **options,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def test_the_import_of_the_package_is_that_of_the_standard_library() -> None:
    """Which takes no second; torch and the rest are imported by the first name that is asked for."""
    done = run(IMPORTED)
    assert done.returncode == 0, done.stderr
    before = set(run("import sys; print(*{name.partition('.')[0] for name in sys.modules})").stdout.split())
    assert set(done.stdout.split()) - before - sys.stdlib_module_names == {"lcf_lightning"}


def test_what_the_program_says_of_itself_needs_no_import_that_takes_a_second() -> None:
    asked = [[], ["--help"], ["--version"], ["evalute"], ["fit", "--help"]]
    code = f"""
from lcf_lightning.cli import main
for arguments in {asked!r}:
    try:
        main(arguments)
    except SystemExit as ended:
        print("ended with", ended.code)
{IMPORTED}"""
    done = run(code)
    assert [line for line in done.stdout.splitlines() if "ended with" in line] == [
        f"ended with {status}" for status in (0, 0, 0, 2, 0)
    ]
    imported = set(done.stdout.splitlines()[-1].split())
    assert not imported & {"torch", "lightning", "transformers", "numpy", "jsonargparse"}, done.stderr


@pytest.fixture
def slim(tmp_path: Path) -> Path:
    """The installed packages, but those of the extra ``train``."""
    extra = (ROOT / "pyproject.toml").read_text().partition("\ntrain = [")[2].partition("\n]")[0]
    names = {Requirement(each).name.lower() for each in re.findall(r'^ +"(.+?)"', extra, re.MULTILINE)}
    assert {"lightning", "datasets", "matplotlib", "tensorboard"} <= names
    names |= {"pytorch_lightning", "lightning_fabric", "lightning_utilities", "pyarrow", "pandas"}
    names -= {"pyyaml"}  # which transformers needs
    kept = tmp_path / "packages"
    kept.mkdir()
    for packages in map(Path, site.getsitepackages()):
        for entry in packages.iterdir() if packages.is_dir() else ():
            name = entry.name.partition("-")[0].partition(".")[0].lower()
            if name not in names and not entry.name.endswith(".pth") and not (kept / entry.name).exists():
                (kept / entry.name).symlink_to(entry)
    return kept


@pytest.mark.slow
def test_an_adapter_is_used_without_anything_that_is_for_training(slim: Path, tmp_path: Path) -> None:
    done = run(USED, "-S", path=(slim, ROOT), cwd=str(tmp_path))
    sentence = r"\w+ is not installed: data, training and evaluation need pip install 'lcf-lightning\[train\]'\.\n"
    assert re.fullmatch(sentence, done.stdout), done.stderr
    assert re.fullmatch(rf"error: {sentence}", done.stderr)
    assert done.returncode == 2
    assert (tmp_path / "saved" / "README.md").is_file()
