"""Kills of a whole fit, as many as CI has time for; docs/reliability.md counts more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survival import STEPS, survive


@pytest.mark.slow
def test_a_fit_that_is_killed_and_started_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    found = survive(tmp_path, kills=6, seed=1)
    assert found["differs"] == []
    assert found["steps"] == STEPS
    assert found["kills at a random time"] + found["kills while saving"] >= 4
