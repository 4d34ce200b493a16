"""The house keeps its order: who imports whom, and how much stands in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lcf_lightning

ROOT = Path(__file__).parents[1]
FILES = {
    **{f"lcf_lightning.{path.relative_to(ROOT / 'lcf_lightning').with_suffix('').as_posix().replace('/', '.')}": path
       for path in sorted((ROOT / "lcf_lightning").rglob("*.py"))},
    **{f"lcf_lightning.callbacks.{path.stem}": path for path in sorted((ROOT / "callbacks").glob("*.py"))},
}  # fmt: skip
"""The package's modules by name."""


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every module that a file imports when it runs, and the names that it takes from it."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module, [alias.name for alias in node.names]


def room(module: str) -> str:
    """The folder below the package that a module stands in, or the module itself where it stands in none."""
    return module.split(".")[1] if "." in module else module


def test_imports_between_rooms_go_one_way() -> None:
    """`TopologicalSorter` raises a CycleError that names a cycle."""
    assert len(FILES) > 60
    graph: dict[str, set[str]] = {}
    for module, path in FILES.items():
        if module == "lcf_lightning.__init__":  # the door, which opens on all of them
            continue
        inside = {room(target) for target, _ in imports(path) if target.startswith("lcf_lightning.")}
        graph.setdefault(room(module), set()).update(inside - {room(module)})
    order = list(TopologicalSorter(graph).static_order())
    story = (
        ["models", "link", "channel"],
        ["adapter", "link"],
        ["data", "link", "evaluation", "module", "callbacks", "cli"],
    )
    for rooms in story:
        assert [name for name in order if name in rooms] == rooms
    assert not graph["models"] & {"data", "adapter"}
    assert not graph["adapter"] & {"data"}
    assert not {name for name, known in graph.items() if "cli" in known} - {"__main__"}


@pytest.mark.parametrize(
    ("part", "foreign"),
    [
        ("lcf_lightning.adapter.", ("transformers", "lightning", "tokenizers", "datasets")),
        ("lcf_lightning.models.", ("lightning", "datasets")),
        ("lcf_lightning.evaluation.", ("lightning",)),
        ("lcf_lightning.channel", ("lightning",)),
    ],
)
def test_what_a_room_does_not_know(part: str, foreign: tuple[str, ...]) -> None:
    modules = [name for name in FILES if name.startswith(part)]
    assert modules
    known = {(name, target) for name in modules for target, _ in imports(FILES[name])}
    assert not [pair for pair in known if pair[1].split(".")[0] in foreign]


def test_data_knows_tokenizers_and_no_model() -> None:
    known = {
        target
        for name, path in FILES.items()
        if name.startswith("lcf_lightning.data.")
        for target, _ in imports(path)
        if target.startswith("lcf_lightning.models")
    }
    assert known == {"lcf_lightning.models.spec"}


def test_the_caches_of_transformers_are_known_in_one_place() -> None:
    knowing = {
        name
        for name, path in FILES.items()
        for target, names in imports(path)
        if target.startswith("transformers") and any(imported.endswith("Cache") for imported in names)
    }
    assert knowing <= {
        "lcf_lightning.models.cache",
        *(n for n in FILES if n.startswith("lcf_lightning.models.families.")),
    }


def test_the_names_that_the_package_offers_stand_once() -> None:
    offered, file = lcf_lightning.__all__, ROOT / "lcf_lightning" / "__init__.py"
    assert {"Channel", "LCFModule", "Message"} <= {*offered} <= {*dir(lcf_lightning)}
    stub = ast.parse(file.with_suffix(".pyi").read_text())
    named = [
        (alias.name, alias.asname) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(named) == [(name, name) for name in offered]  # `X as X`: to type checkers, this is offered
    assert all(getattr(lcf_lightning, name).__name__ == name for name in offered)
    assert not [name for name in offered if name in file.read_text()]


def test_no_file_shows_too_much() -> None:
    files = [path for folder in ("lcf_lightning", "callbacks", "benchmarks", "examples", "tests", "docs")
             for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip
    assert len(files) > 120
    long = {str(path.relative_to(ROOT)): lines for path in files if (lines := path.read_text().count("\n")) > 300}
    assert not long


def test_a_function_fits_a_screen() -> None:
    long = {
        f"{name}.{node.name}": length
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert not long
