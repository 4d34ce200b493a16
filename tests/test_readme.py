"""README's first screen: the lines, the picture, the figures. All commands of all pages: tests/test_docs.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lcf_lightning.cli import main
from tests.pages import RESULTS
from tests.test_cli import QUICK

ROOT = Path(__file__).parents[1]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_first_screen_has_the_two_commands_and_the_four_lines() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    assert "pip install torch==2.13.0 -e '.[dev]'" in screen
    assert "lcf-lightning fit --config configs/quickstart.yaml" in screen
    assert "\npytest" in screen
    assert "Channel.from_pretrained" in screen


@pytest.mark.parametrize(
    ("script", "picture", "said"),
    [("diagram", "channel", {"LCF, C2C", "LCF-X", "prefix, carry"}), ("quality", "quality", {"a message: carry"})],
)
def test_a_picture_says_what_its_script_writes(script: str, picture: str, said: set[str], tmp_path: Path) -> None:
    drawn, kept = tmp_path / f"{picture}.svg", ROOT / "docs" / f"{picture}.svg"
    subprocess.run([sys.executable, f"docs/{script}.py", str(drawn)], cwd=ROOT, check=True)
    texts = [re.findall(r"<text[^>]*>([^<]+)</text>", each.read_text()) for each in (drawn, kept)]
    assert texts[0] == texts[1]
    assert said <= set(texts[0])
    assert any(f"{kept.name})" in page.read_text() for page in [ROOT / "docs" / "how_it_works.md", *RESULTS])


def test_the_first_picture_is_of_the_channel() -> None:
    assert "(docs/channel.svg)" in (ROOT / "README.md").read_text()


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


def test_the_tree_names_every_file_of_the_package() -> None:
    tree = (ROOT / "README.md").read_text().partition("\nlcf_lightning/\n")[2].partition("```")[0]
    inside = [ROOT / "lcf_lightning" / folder for folder in (".", "data", "models", "adapter", "evaluation")]
    names = {file.stem for folder in inside for file in folder.glob("[!_]*.py")}
    assert len(names) > 60
    assert not {name for name in names if not re.search(rf"\b{name}\b", tree)}


def test_every_report_says_which_release_made_it_and_old_sections_are_marked() -> None:
    made = {}
    for file in (ROOT / "docs" / "evaluations").rglob("report*.json"):
        facts = json.loads(file.read_text())["facts"]
        made[file.parent.name, file.name] = facts.get("made_by") or facts["versions"].split(",")[0]
    assert set(made.values()) == {"lcf-lightning 0.1.0", "lcf-lightning 0.2.0"}
    assert made["quickstart", "report.json"] == made["smollm2_babi", "report.json"] == "lcf-lightning 0.2.0"
    results = "\n".join(page.read_text() for page in RESULTS)
    sections = {part.split("\n")[0]: part for part in re.split(r"\n#{1,3} ", results)[1:]}
    for title in ("HotpotQA, the question hidden", "bAbI task 1, the question hidden", "Facts and bytes"):
        assert sections[title].split("\n")[2].startswith("*Made by 0.1.0")
    for title in ("Every arm of the quickstart", "Time to the first token"):
        assert "0.2.0" in sections[title]
