"""What stands around the code: the site's pages, what says who wrote it, what checks it, and a notebook that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lightning.pytorch  # noqa: F401 - which sets a variable, when it is first imported
import pytest
import yaml

from tests.pages import PAGES

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "two_models.ipynb"


def test_nothing_cites_a_file_that_is_not_here() -> None:
    folders = ("lcf_lightning", "callbacks", "docs", "configs", "examples", "benchmarks")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml")
    ]
    assert len(files) > 150
    assert not [path for path in files if re.search(r"method\.md|architecture\.md", path.read_text())]


def test_every_link_between_pages_leads_somewhere_and_every_page_has_a_name_of_its_own() -> None:
    assert len({page.name for page in PAGES}) == len(PAGES)
    broken = [
        f"{page.name}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_every_page_is_in_the_site_and_ci_builds_it_with_warnings_as_errors() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    assert not [page for page in docs.rglob("*.md") if f" {page.relative_to(docs).as_posix()}\n" not in site]
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["ci"]["steps"][-1] == {"run": ".ci/run"}


def test_the_citation_is_of_this_release() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in project
    assert f'license = "{cited["license"]}"' in project
    assert {"title", "authors", "message", "cff-version"} <= cited.keys()


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_holds_no_output() -> None:
    assert len(cells("code")) == 5
    assert all(not cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"])


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for place, code in enumerate(cells("code")):
        short = re.sub(r"^STEPS = \d+", "STEPS = 2", code, flags=re.MULTILINE)
        exec(compile(short, f"cell {place}", "exec"), session)
    said = capsys.readouterr().out
    assert re.search(r"^mismatched +exact match \d\.\d{3}", said, re.MULTILINE)
    assert Path("runs/notebook/adapter/README.md").is_file()
