"""Every file in configs/ parses, runs the command its first line gives, and repeats nothing of its base."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lcf_lightning.cli.config_files import bases
from tests.pairs import parse_only

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_all_are_found() -> None:
    assert len(CONFIGS) == 22
    assert "quickstart.yaml" in {path.name for path in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_a_command_that_parses(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parents[1])
    first = config.read_text().splitlines()[0]
    program, command, *arguments = shlex.split(first.removeprefix("# "))
    assert (first[:2], program) == ("# ", "lcf-lightning")
    assert arguments == ["--config", str(config.relative_to(config.parents[1]))]

    parsed = parse_only([command, *arguments])
    assert parsed["model"]["sharer"]["path"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_data_sets_that_it_reads_are_in_the_table_of_data_sets(config: Path) -> None:
    table = (config.parents[1] / "docs" / "models.md").read_text().partition("## Data sets")[2].partition("\n## ")[0]
    assert f"`{config.stem}`" in table or config.stem.startswith(("quickstart", "my_pair"))
    for read in (config, *bases(config)):
        assert all(
            f"`{name}`" in table for name in re.findall(r"(?:train|test): ([\w-]+/[\w.-]+)[,}]", read.read_text())
        )


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize("config", [path for path in CONFIGS if bases(path)], ids=lambda path: path.stem)
def test_what_a_base_says_is_not_repeated(config: Path) -> None:
    inherited: dict[str, Any] = {}
    for base in bases(config):
        inherited |= leaves(yaml.safe_load(base.read_text()))
    own = leaves(yaml.safe_load(config.read_text()))
    assert not [key for key, value in own.items() if inherited.get(key) == value]
    assert own["base"]
