"""What the command line says of itself."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lcf_lightning.__main__ import main as program
from lcf_lightning.cli import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_all_commands_are_listed_with_a_line_each(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert len(COMMANDS) == 11
    for command in COMMANDS.values():
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {command.name} ")] == [
            command.summary
        ]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.configured])
def test_a_command_alone_says_what_it_needs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: model.sharer.path is not set; give a config (--config FILE), or --model.sharer.path itself.\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            main([name, *(["--config", "no.yaml"] if COMMANDS[name].configured else []), option])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert text.startswith(f"usage: lcf-lightning {name} ")
        assert text.count("\n") <= 40
        assert all(option in text for option, _ in COMMANDS[name].options)
        assert ("--help-all" in text) == COMMANDS[name].configured


def test_the_working_directory_can_be_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the console script too; `python -m` puts it there itself."""
    (tmp_path / "own_parts_of_a_user.py").write_text("HERE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.setattr(sys, "argv", ["lcf-lightning", "--version"])
    with pytest.raises(SystemExit):
        program()
    assert importlib.import_module("own_parts_of_a_user").HERE == 1
    assert sys.path.count(os.getcwd()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_all_of_help_opens_with_what_it_does_its_most_used_options_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help-all"])
    command, text = COMMANDS[name], capsys.readouterr().out
    assert ended.value.code == 0
    opening = text.split("positional arguments:" if "positional arguments:" in text else "options:\n")[0]
    lines = [line.strip() for line in opening.splitlines() if line.strip()]
    assert lines[0].startswith(f"usage: lcf-lightning {name}")
    assert lines[1] == f"{command.summary}."
    assert len(command.options) == (4 if name == "compare" else 5)
    for option, meaning in command.options:
        if option.isupper():  # an argument that is no option
            continue
        (line,) = [line for line in lines if line.startswith(option) and line.endswith(meaning)]
        setting = option.split()[0]
        settings = (setting, setting.rpartition(".")[0] or setting)  # --model.prefills holds those below it
        assert any(known in text.split("Example:")[1] for known in settings) or name == "compare", line
    assert f"lcf-lightning {name} {command.example}" in lines


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lcf-lightning {version('lcf-lightning')}\n"


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evalute"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("prune, export, import-c2c, params, cache; did you mean evaluate?\n")
