"""Hooks of the documentation site (mkdocs.yml): pages that stand at the top of the repository are pages of it too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's top, with links as from within docs/."""
    for source, name in PAGES.items():
        text = re.sub(r"\]\((?!https?:|#)(?!docs/)", "](../", (ROOT / source).read_text())
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links out of docs/ go to their page of the site; what has none there, a config or a report, is named only."""
    here = posixpath.dirname(page.file.src_uri)

    def to_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link["path"]))
        outside = target.removeprefix("../") if target.startswith("../") else ""
        if outside in PAGES:
            return f"[{link['text']}]({posixpath.relpath(PAGES[outside], here or '.')}{link['anchor'] or ''})"
        report = target.startswith("evaluations") and not target.endswith((".png", ".svg"))
        return link["text"] if outside or report else link[0]

    return re.sub(r"\[(?P<text>[^\]]+)\]\((?P<path>(?!\w+:|#)[^)#]+)(?P<anchor>#[^)]*)?\)", to_site, markdown)
