"""The model card: what the hub reads of it, what somebody reads of it, and that its lines run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.card import CARD_FILE
from lcf_lightning.adapter.folder import WEIGHTS_FILE, read_config, record_scores
from lcf_lightning.cli import main
from lcf_lightning.data.sources import HotpotQA, JsonLines, Mismatched, Mixture, World
from lcf_lightning.digests import tensors_digest
from lcf_lightning.training import hub_ids
from tests.test_cli import QUICK, fit

Build = Callable[..., CacheAdapter]
SCORES = {
    "message": {"exact_match": 0.875, "f1": 0.9, "low": 0.8, "high": 0.93, "n": 128},
    "mismatched": {"exact_match": 0.25, "n": 128},
}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "LCF-X"),
        ({"pooler": "prefix"}, "LCF prefix"),
        ({"pooler": None}, "LCF"),
        ({"pooler": None, "fuser": "c2c"}, "C2C"),
    ],
)
def test_the_card_says_what_the_adapter_is(adapter: Build, tmp_path: Path, settings: dict[str, Any], kind: str) -> None:
    module = adapter(**settings)
    module.save_pretrained(tmp_path / "a", {"steps": 600, "seed": 42, "source": "Knowledge", "scores": SCORES})
    text = (tmp_path / "a" / CARD_FILE).read_text()
    size = (tmp_path / "a" / WEIGHTS_FILE).stat().st_size
    for part in (
        f"# {kind} adapter", f"| Method | {kind}, d = 16 |", "a/sharer (revision main, float32)", "| Steps | 600 |",
        "b/receiver (float32)", "| Data | Knowledge |", "| Seed | 42 |", "Test split of Knowledge:",
        "| message | 0.875 [0.800, 0.930] | 0.900 | – | 128 |", "| mismatched | 0.250 | – | – | 128 |",
        f"{module.parameter_counts()['total']:,}", f"{size / 1e6:.2f} MB", "5 of 5",
    ):  # fmt: skip
        assert part in text
    module.save_pretrained(tmp_path / "b", {})
    assert "| Steps | not recorded |" in (tmp_path / "b" / CARD_FILE).read_text()
    assert "exact match" not in (tmp_path / "b" / CARD_FILE).read_text()


def test_the_head_is_what_the_hub_reads(adapter: Build, tmp_path: Path) -> None:
    facts = {"source": "HotpotQA", "datasets": ["hotpotqa/hotpot_qa"], "license": "gemma", "scores": SCORES}
    adapter().save_pretrained(tmp_path / "mine", facts)
    data = ModelCard.load(tmp_path / "mine" / CARD_FILE).data
    assert data.base_model == ["a/sharer", "b/receiver"]
    assert (data.license, data.pipeline_tag, data.datasets) == ("gemma", "text-generation", ["hotpotqa/hotpot_qa"])
    assert data.library_name == "lcf_lightning"
    assert data.model_name == "mine"
    found = {result.metric_name: (result.dataset_name, result.metric_value) for result in data.eval_results or []}
    assert found == {
        "exact_match, message, n = 128": ("HotpotQA", 0.875),
        "f1, message, n = 128": ("HotpotQA", 0.9),
        "exact_match, mismatched, n = 128": ("HotpotQA", 0.25),
    }
    adapter().save_pretrained(tmp_path / "bare", {})
    assert ModelCard.load(tmp_path / "bare" / CARD_FILE).data.license == "apache-2.0"


def test_scores_are_recorded_for_these_weights_alone_and_more_examples_win(adapter: Build, tmp_path: Path) -> None:
    module = adapter()
    module.save_pretrained(tmp_path, {"steps": 3})
    weights = tensors_digest(module.state_dict())
    before = CacheAdapter.from_pretrained(tmp_path).fingerprint()
    other = tensors_digest({name: tensor + 1 for name, tensor in module.state_dict().items()})
    assert not record_scores(tmp_path, other, SCORES, "World")
    assert not record_scores(tmp_path / "none", weights, SCORES, "World")
    assert record_scores(tmp_path, weights, SCORES, "World")
    few = {"message": {"exact_match": 1.0, "n": 2}, "zero": {"exact_match": None, "loss": float("inf"), "n": 2}}
    assert record_scores(tmp_path, weights, few, "World")
    kept = read_config(tmp_path)[0].metadata
    assert kept["scores"] == {"zero": {"exact_match": None, "n": 2}, **SCORES}
    assert kept["steps"] == 3
    assert record_scores(tmp_path, weights, few, "SQuAD")
    assert read_config(tmp_path)[0].metadata["scores"]["message"] == few["message"]
    assert "Test split of SQuAD:" in (tmp_path / CARD_FILE).read_text()
    assert CacheAdapter.from_pretrained(tmp_path).fingerprint() == before


def test_a_test_and_an_evaluation_write_the_card_and_its_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Path("run"))
    summary = json.loads(Path("run/summary.json").read_text())["arms"]["message"]
    text = Path("run/adapter", CARD_FILE).read_text()
    assert f"| message | {summary['exact_match']:.3f} | {summary['f1']:.3f} | " in text
    own = ["--trainer.default_root_dir", "run"]
    Path("run/adapter", CARD_FILE).unlink()
    main(["test", *QUICK, *own])
    assert f"| message | {summary['exact_match']:.3f} | " in Path("run/adapter", CARD_FILE).read_text()
    main(["evaluate", *QUICK, *own, "--repeats", "0", "--arms", "message,noise"])
    text = Path("run/adapter", CARD_FILE).read_text()
    assert re.search(r"\| noise \| [\d.]+ \[[\d.]+, [\d.]+\] \| ", text)
    assert "| own_context | " in text  # of the test
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert 'from_pretrained("run/adapter")' in code
    capsys.readouterr()
    exec(compile(code, CARD_FILE, "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_data_sets_of_the_hub_are_named(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.touch()
    mixed = Mixture([World(), Mismatched(HotpotQA()), JsonLines(str(own)), HotpotQA()])
    assert hub_ids(mixed) == ["hotpotqa/hotpot_qa"]
