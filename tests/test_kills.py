"""Kills of every command that writes, as many as CI has time for; docs/reliability.md counts more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import kill


@pytest.mark.slow
def test_commands_that_are_killed_and_started_again_end_as_if_undisturbed(tmp_path: Path) -> None:
    found = kill(tmp_path, kills=12, seed=1)
    assert {name: each["differs"] for name, each in found.items()} == {name: [] for name in found}
    assert min(each["kills"] for each in found.values()) >= 1
