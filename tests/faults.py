"""Seeds faults into a copy of the package, one at a time, and says which of them the tests catch.

    python -m tests.faults                    # all; a table, exit code 1 if one survives
    python -m tests.faults --only message     # those of one group
    python -m tests.faults --tree DIR         # of another checkout with the same lines

A fault is a line of the package and what it becomes. The tests named beside it are asked first; where none of them
fails, the whole default suite is (with ``--whole``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fault import Fault
from tests.fault_list import FAULTS

ROOT = Path(__file__).parents[1]


def home(tree: Path, fault: Fault) -> Path:
    """The one file of the package that holds a fault's text."""
    files = [path for path in sorted((tree / "lcf_lightning").rglob("*.py")) if fault.old in path.read_text()]
    if len(files) != 1 or files[0].read_text().count(fault.old) != 1:
        raise SystemExit(f"{fault.old!r} stands {len(files)} times in {tree}; it must once.")
    return files[0]


def caught(tree: Path, fault: Fault, whole: bool) -> bool:
    """Whether a test fails with the fault in the tree, which is then mended."""
    file = home(tree, fault)
    text = file.read_text()
    file.write_text(text.replace(fault.old, fault.new))
    try:
        asked = [fault.tests, *(["tests"] if whole else [])]
        return any(fails(tree, tests) for tests in asked)
    finally:
        file.write_text(text)


def fails(tree: Path, tests: str) -> bool:
    """Whether one of these tests fails; imports come from the tree, whatever is installed."""
    run = "import sys, lcf_lightning, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=-m 'not slow'"]
    paths = [path for path in tests.split() if (tree / path).exists()]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", run, *options, *paths]
    ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if ended.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # neither caught nor survived
        raise SystemExit(f"{tests}: pytest ended with {ended.returncode}.\n{ended.stdout[-2000:]}")
    return ended.returncode == pytest.ExitCode.TESTS_FAILED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="A group (message, wire, adapter, data), or the beginning of a fault's text.")
    parser.add_argument("--tree", type=Path, default=ROOT, help="The checkout to copy.")
    parser.add_argument(
        "--whole", action="store_true", help="Ask the whole default suite where the tests named miss one."
    )
    parser.add_argument("--output", type=Path, help="A JSON file of what was caught.")
    args = parser.parse_args()
    survived: list[Fault] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(args.tree, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv*", "runs"))
        chosen = [fault for fault in FAULTS if args.only in (None, fault.group) or fault.old.startswith(args.only)]
        for fault in chosen:
            home(tree, fault)
        for tests in {fault.tests for fault in chosen} | ({"tests"} if args.whole else set()):
            if fails(tree, tests):  # or whatever is seeded would seem caught
                raise SystemExit(f"{tests}: a test fails without a fault.")
        for fault in chosen:
            if not caught(tree, fault, args.whole):
                survived.append(fault)
            print(f"{'SURVIVED' if fault in survived else 'caught  '} {fault.group:<8} {fault.new[:90]}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} caught")
    if args.output is not None:
        args.output.write_text(json.dumps({fault.new: fault not in survived for fault in chosen}, indent=1))
    raise SystemExit(1 if survived else 0)


if __name__ == "__main__":
    main()
