"""The benchmark at the paper's size, on tiny models: what it builds, measures, keeps and prints."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lcf_lightning.cli import main
from lcf_lightning.errors import SettingError
from lcf_lightning.models.families import family_of
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What ``paper_scale.py`` defines."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / "paper_scale.py"))


def tiny(scale: dict[str, Any]) -> Any:
    return scale["Size"](device="cpu", lengths=0.05, tiny=True, repeats=1)


def test_models_are_those_of_the_paper_to_the_parameter(scale: dict[str, Any]) -> None:
    pair = runpy.run_path(str(BENCHMARKS / "random_pair.py"))
    published = {"Qwen/Qwen2.5-0.5B-Instruct": 494_032_768, "Qwen/Qwen3-0.6B": 596_049_920}
    assert pair["MODELS"].keys() == published.keys()
    for name, parameters in published.items():
        config = pair["config_of"](name)
        assert family_of(config).geometry(config) == KNOWN_GEOMETRIES[name]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(tensor.numel() for tensor in model.parameters()) == parameters


@pytest.mark.slow
def test_cases_are_the_paper_s_adapters(scale: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """As the configs have them, pruned to nine layers too."""
    counts = {}
    for case in scale["CASES"].values():
        pruned = ["--model.adapter.layers", str(list(case.settings["layers"]))] if "layers" in case.settings else []
        if (key := (case.config, *pruned)) in counts:
            continue
        main(["params", "--json", "--config", str(BENCHMARKS.parent / "configs" / f"{case.config}.yaml"), *pruned])
        counts[key] = json.loads(capsys.readouterr().out)["total"]
    assert sorted(counts.values()) == [6_233_634, 19_393_528, 25_873_400, 53_409_272, 477_848_056]


def test_texts_have_as_many_tokens_as_they_are_asked_for(scale: dict[str, Any]) -> None:
    pair = runpy.run_path(str(BENCHMARKS / "random_pair.py"))
    tokenizer, lengths = pair["tokenizer_of"](99), pair["Lengths"](passages=3, passage=20, question=7, answer=5)
    example = pair["examples"](1, lengths, 99)[0]
    texts = [passage[0] for passage in example.sharer + example.receiver] + [example.question, *example.answers]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [len(row) for row in ids] == [20] * 6 + [7, 5]
    assert [tokenizer.decode(row) for row in ids] == texts


@pytest.mark.parametrize(
    "name",
    ["LCF-X, step"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("LCF-X and texts, latency", "C2C, step", "LCF-128 of 9 layers, latency", "carry, step")
    ],
)
def test_a_case_is_measured(scale: dict[str, Any], name: str) -> None:
    found = scale["attempt"](scale["CASES"][name], tiny(scale))
    assert found["status"] == "done"
    assert json.loads(json.dumps(found)) == found
    if name.endswith("step"):
        assert found["finite"]
        assert min(found["phases_ms"].values()) > 0
        whole = found["accumulate"] * found["micro_step_ms"] + found["phases_ms"]["optimizer"]
        assert found["step_seconds"] == pytest.approx(whole / 1e3)
        assert found["tflop_first_micro_step"] > 0
    else:
        written = {arm: row["written_tokens"] for arm, row in found["latency"]["arms"].items()}
        assert {f"t2t_{budget}" for budget in found["budgets"]} <= written.keys()
        assert all(written[f"t2t_{budget}"] == budget for budget in found["budgets"])  # none ends early
    row = scale["page"]({name: found}, tiny(scale))
    assert f"| {name} | {found.get('parameters', 0):,} |" in row or f"| {name} | " in row


def test_what_does_not_fit_the_card_is_said(scale: dict[str, Any]) -> None:
    attempt = scale["attempt"]

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    attempt.__globals__["measured"] = full
    found = attempt(scale["CASES"]["C2C, step"], tiny(scale))
    assert found == {"status": "out of memory", "why": "CUDA out of memory. Tried to allocate 9 GiB."}
    assert "| C2C, step | out of memory: CUDA out" in scale["page"]({"C2C, step": found}, tiny(scale))
    attempt.__globals__["measured"] = broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        attempt(scale["CASES"]["C2C, step"], tiny(scale))


def test_what_was_found_is_kept_and_what_was_not_is_tried_again(scale: dict[str, Any], tmp_path: Path) -> None:
    file, run, started = tmp_path / "scale.json", scale["run"], []
    ends = {"LCF-X, step": "out of memory", "C2C, step": "time limit"}

    def fake(name: str, size: Any, limit: float) -> dict[str, Any]:
        started.append((name, round(limit)))
        return {"status": ends[name], "why": "so"}

    run.__globals__["in_a_process"] = fake
    names = list(ends)
    assert {name: found["status"] for name, found in run(names, file, tiny(scale), 99, 50).items()} == ends
    assert started == [(name, 50) for name in names]
    run(names, file, tiny(scale), 30, 50)
    assert started[2:] == [("C2C, step", 30)]
    assert run(names, file, tiny(scale), 0, 50)["C2C, step"]["status"] == "not run"
    with pytest.raises(SettingError, match=r"scale.json' is of .*'tiny': True.*name another file"):
        run(names, file, scale["Size"](device="cpu"), 99, 50)


@pytest.mark.slow
def test_a_case_that_takes_too_long_is_ended(scale: dict[str, Any]) -> None:
    assert scale["in_a_process"]("LCF-X, step", tiny(scale), 0.2)["status"] == "time limit"
    failed = scale["in_a_process"]("LCF-X, step", scale["Size"](device="no_such_device", tiny=True), 100)
    assert failed["status"] == "failed"
    assert "no_such_device" in failed["why"]
