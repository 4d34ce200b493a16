"""What the quickstarts of shared context recover."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcf_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart_shared", "quickstart_shared_c2c"])
def test_the_expert_tells_what_it_knows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of facts that no training example held: chance is 0.25, the sharer alone knows all."""
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--trainer.enable_progress_bar", "false"])
    summary = json.loads(Path(f"runs/{name}/summary.json").read_text())
    arms = {arm: figures["exact_match"] for arm, figures in summary["arms"].items()}
    assert {figures["n"] for figures in summary["arms"].values()} == {128}
    assert arms["sharer_alone"] >= 0.99
    assert arms["own_context"] <= 0.40
    assert arms["mismatched"] <= 0.40
    assert arms["message"] >= 0.85
