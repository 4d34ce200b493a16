"""The quickstart as a new user runs it, to the end, and what it must show on unseen examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcf_lightning import Channel
from lcf_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.slow
def test_the_quickstart_communicates(quickstart: Path) -> None:
    summary = json.loads((quickstart / "summary.json").read_text())
    arms = {arm: figures["exact_match"] for arm, figures in summary["arms"].items()}
    assert min(figures["n"] for figures in summary["arms"].values()) >= 500
    assert arms["own_context"] <= 0.08
    assert arms["mismatched"] <= 0.10
    assert arms["message"] >= 0.95
    assert arms["full_context"] >= 0.97
    assert summary["own_questions"]["message"]["exact_match"] >= 0.95

    run = ["--trainer.default_root_dir", str(quickstart), "--trainer.enable_progress_bar", "false"]
    main(["evaluate", "--config", str(CONFIGS / "quickstart.yaml"), *run])
    report = json.loads((quickstart / "evaluation" / "report.json").read_text())
    for arm, figures in summary["arms"].items():
        assert report["arms"][arm]["exact_match"]["value"] == pytest.approx(
            figures["exact_match"], abs=2 / figures["n"]
        )
    assert report["audit"]["comparisons"]["content_attributable_gain"]["gain"]["low"] > 0.8
    assert max(report["arms"][arm]["exact_match"]["high"] for arm in ("zero", "self", "noise")) <= 0.10
    assert report["arms"]["t2t_50"]["exact_match"]["value"] >= 0.95
    assert report["latency"]["ttft_vs_t2t"]["50"]["median"] > 1.5

    channel = Channel.from_pretrained(quickstart / "adapter")
    message = channel.send(["likes ada tea .", "owns ben lamp .", "seeks cleo ruby .", "sells dan soup ."], "likes ada")
    assert (
        channel.receive(message, "likes ada", ["finds eva bell .", "hides finn kite .", "fears gia wolf ."]).text
        == "tea"
    )


@pytest.mark.slow
def test_a_message_is_understood_that_was_written_before_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "quickstart_blind.yaml"), "--trainer.enable_progress_bar", "false"])
    summary = json.loads(Path("runs/quickstart_blind/summary.json").read_text())
    arms = {arm: figures["exact_match"] for arm, figures in summary["arms"].items()}
    assert min(figures["n"] for figures in summary["arms"].values()) >= 500
    assert arms["message"] >= 0.97
    assert arms["mismatched"] <= 0.10
    assert summary["own_questions"]["message"]["exact_match"] >= 0.97

    channel = Channel.from_pretrained("runs/quickstart_blind/adapter")
    message = channel.send(["likes ada tea .", "owns ben lamp .", "seeks cleo ruby .", "sells dan soup ."])
    own = ["finds eva bell .", "hides finn kite .", "fears gia wolf ."]
    asked = ["likes ada", "owns ben", "seeks cleo", "sells dan"]
    answers = [channel.receive(message, question, own).text for question in asked]  # one message, every question
    assert sum(one == two for one, two in zip(answers, ["tea", "lamp", "ruby", "soup"], strict=True)) >= 3
