"""What README and docs say to run does run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lcf_lightning.cli import main
from tests.pairs import parse_only
from tests.test_cli import QUICK

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    """Every ``python -m lcf_lightning`` command of every page, continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                found += re.findall(r"python -m lcf_lightning .*", line)
    return found


def test_the_first_screen_has_the_two_commands_and_the_four_lines() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    assert "pip install torch==2.13.0 -e '.[dev]'" in screen
    assert "python -m lcf_lightning fit --config configs/quickstart.yaml" in screen
    assert "\npytest" in screen
    assert "Channel.from_pretrained" in screen


def test_the_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "docs/diagram.py", str(tmp_path / "channel.svg")], cwd=ROOT, check=True)
    drawn, kept = (path.read_text() for path in (tmp_path / "channel.svg", ROOT / "docs" / "channel.svg"))
    texts = [re.findall(r"<text[^>]*>([^<]+)</text>", picture) for picture in (drawn, kept)]
    assert texts[0] == texts[1]
    assert "message" in texts[0]
    assert "(docs/channel.svg)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.split(" #")[0].replace("$SMOLLM2", "model.gguf").replace("$GEMMA3", "model.gguf"))
    if words[3] in ("compare", "export"):  # these need no config: what is missing here is only what they read
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            main(words[3:])
        assert re.match(r"error: (first|checkpoint)='.*' (must be a folder of|is not a file)", capsys.readouterr().err)
        return
    monkeypatch.chdir(ROOT)
    parsed = parse_only([word for word in words[3:] if word != "--print_config"])
    assert parsed._get(parsed.config, "model")["sharer"]["path"]


def test_the_four_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", *QUICK, "--trainer.max_steps", "1"])
    code = blocks(ROOT / "README.md", "python")[0]
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert len(code.strip().splitlines()) <= 6
    assert capsys.readouterr().out.strip()


def test_every_figure_of_the_results_table_is_in_the_results_file() -> None:
    """README's table repeats docs/results.json, which `fit` wrote."""
    results = json.loads((ROOT / "docs" / "results.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert {"quickstart", "quickstart_blind"} <= results.keys()
    for run in ("quickstart", "quickstart_blind", "quickstart_many"):
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{run}.yaml`"))
        for arm in ("own_context", "mismatched", "message", "full_context"):
            assert f"{results[run]['arms'][arm]['exact_match']:.3f}" in row
        assert f"{results[run]['own_questions']['message']['exact_match']:.3f}" in row
    for run in ("quickstart_shared", "quickstart_shared_c2c"):
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{run}.yaml`"))
        for arm in ("sharer_alone", "own_context", "mismatched", "message"):
            assert f"{results[run]['arms'][arm]['exact_match']:.3f}" in row
        assert f"{results[run]['adapter']['parameters']:,}" in row
