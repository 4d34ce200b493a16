"""What the benchmarks have in common; their commands: tests/test_docs.py."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcf_lightning import AdapterSettings, LCFModule, ModelSpec
from lcf_lightning.cli import main
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import World
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.models.geometry import Geometry
from tests.evaluation.answers import answer
from tests.pages import RESULTS
from tests.pairs import channel_of

ROOT = Path(__file__).parents[1]
PARTS = ("embedded", "paper_case", "random_pair")  # no commands
SCRIPTS = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if file.stem not in PARTS]


@pytest.fixture(scope="module")
def embedded() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "embedded.py"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """From a benchmark's name to what it defines."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_benchmark_says_what_it_does(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where peft, which one of them needs, is not installed."""
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(sys, "argv", [file.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out


def test_a_benchmark_without_its_package_says_what_to_install(
    script: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(sys, "argv", ["lora_control.py", "--output", "none.jsonl"])
    with pytest.raises(SystemExit) as ended:
        script("lora_control")["main"]()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: peft is not installed; pip install peft.\n"


def test_the_fuser_s_benchmark_compares_the_same_weights(
    script: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    geometry = Geometry(layers=2, kv_heads=2, head_dim=4)
    script("fuser")["compare"]("tiny", geometry, geometry, tokens=3, d=8, repeats=1)
    assert capsys.readouterr().out.count("tiny, d=8, 3 tokens: ") == 3


def test_what_was_measured_is_not_measured_again(embedded: dict[str, Any], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def measure(one: int, two: int) -> dict[str, int]:
        calls.append((one, two))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"sum": one + two}

    file = tmp_path / "results" / "run.json"
    with pytest.raises(KeyboardInterrupt):
        embedded["kept"](file, measure, 1, 2)
    assert not file.exists()
    assert embedded["kept"](file, measure, 1, 2) == embedded["kept"](file, measure, 1, 2) == {"sum": 3}
    assert (calls, json.loads(file.read_text())) == ([(1, 2)] * 2, {"sum": 3})


def test_only_a_whole_adapter_is_not_trained_again(
    embedded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(embedded["subprocess"], "run", lambda command, **_: started.append(command))
    (tmp_path / "adapter").mkdir()  # a fit that was killed as it wrote
    assert embedded["trained"](tmp_path, "quickstart", 7, 5, ["--x", "1"]) == tmp_path / "adapter"
    assert started[0][-2:] == ["--x", "1"]
    assert started[0][started[0].index("--seed_everything") + 1] == "7"
    (tmp_path / "adapter" / "lcf_config.json").touch()
    embedded["trained"](tmp_path, "quickstart", 7, 5, [])
    assert len(started) == 1


def test_shifted_text_stands_before_the_sharers_alone(script: Callable[[str], dict[str, Any]]) -> None:
    """So many tokens more, in no span; what the receiver reads and is asked stays."""
    answered = script("ablation")["answered"]
    module = LCFModule(ModelSpec("tiny-sharer"), ModelSpec("tiny-receiver"), AdapterSettings(d=8))
    module.configure_model()
    channel = channel_of(module.eval())
    prompts = {"context": "{passages} ", "separator": " ", "question": "question {question} ?"}
    channel.prompts = PromptSettings(**prompts)
    batches, run_arms = [], answered.__globals__["run_arms"]

    def watched(caches: ArmCaches, arms: list[str], tokens: int) -> list[Any]:
        batches.append(caches.batch)
        return run_arms(caches, arms, tokens)

    answered.__globals__["run_arms"] = watched
    examples = list(World(test_size=3).examples("test", 1))
    for arm in ("message", "sharer_alone"):
        assert {len(answered(channel, examples, shift, arm)) for shift in (0, 64)} == {3}
    plain, moved = batches[:2]
    assert (moved.sharer.mask.sum(1) - plain.sharer.mask.sum(1)).tolist() == [64] * 3
    assert [(row >= 0).sum() for row in moved.index] == [(row >= 0).sum() for row in plain.index]
    assert (moved.receiver.ids == plain.receiver.ids).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("capacity", []), ("capacity", ["--methods", "carry", "--facts", "4", "16"]), ("ablation", [])],
)
def test_tables_of_the_docs_are_what_a_benchmark_prints_of_its_runs(
    script: Callable[[str], dict[str, Any]],
    name: str,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """All runs are there: none is made again."""
    kept = tmp_path / name
    shutil.copytree(ROOT / "docs" / "evaluations" / name, kept)
    main = script(name)["main"]
    monkeypatch.setattr(sys, "argv", [name, "--output", str(kept), *options])
    monkeypatch.setitem(main.__globals__, "trained", None)
    main()
    tables = [lines for lines in capsys.readouterr().out.split("\n\n") if lines.startswith("|")]
    results = "\n".join(page.read_text() for page in RESULTS)
    assert len(tables) == {"capacity": 1, "ablation": 2}[name]
    for table in tables:
        assert table.strip() in results


def test_figures_of_babi_s_seeds_are_those_of_the_kept_reports() -> None:
    results, readme = ((ROOT / name).read_text() for name in ("docs/results/babi.md", "README.md"))
    scores, gains = {}, {}
    for adapter, name in (("prefix", "prefix"), ("LCF-X", "span"), ("LCF-X without noise", "span_without_noise")):
        for seed in (42, 43, 44):
            file = ROOT / "docs" / "evaluations" / "smollm2_babi_blind" / f"report_{name}_{seed}.json"
            report = json.loads(file.read_text())
            assert report["facts"]["training_seed"] == seed
            score = [report["arms"][arm]["exact_match"]["value"] for arm in ("message", "mismatched")]
            gain = report["audit"]["comparisons"]["content_attributable_gain"]["gain"]
            shown = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            assert f"| {adapter} | {seed} | {score[0]:.3f} | {score[1]:.3f} | {shown} |" in results
            scores[adapter, seed], gains[adapter, seed] = score, gain["value"]
    means = np.array(list(scores.values())).reshape(3, 3, 2).mean(1)
    heard, wrong = ([f"{value:.3f}" for value in column] for column in means.T)
    assert f"answers {heard[0]} with `prefix` and {heard[1]} with LCF-X ({heard[2]} without gate noise)" in readme
    assert f"message: {wrong[0]}, {wrong[1]} and {wrong[2]} (n = 512" in readme
    means = np.array(list(gains.values())).reshape(3, 3)
    assert (means[0] > means[1:]).all()
    assert "means {:+.3f}, {:+.3f} (LCF-X) and {:+.3f} (without noise)".format(*means.mean(1)) in results


def test_every_method_on_natural_text_is_an_adapter(
    script: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row's options are understood and give an adapter; none is another's."""
    rows, sizes = script("natural_text")["ROWS"], {}
    for name, row in rows.items():
        assert row.of is None or row.of in rows
        config = ROOT / "configs" / f"qwen_coder_hotpotqa{'_wrong' * row.wrong}.yaml"
        main(["params", "--json", "--config", str(config), *row.fit.split(), *row.data.split(), *row.evaluate.split()])
        sizes[name] = json.loads(capsys.readouterr().out)["total"]
    assert len({sizes["carry"], sizes["LCF-X"], sizes["prefix"]}) == 3
    assert sizes["carry"] == sizes["carry, re-read, 8 tokens"] == 7_498_896


def test_the_picture_of_natural_text_shows_what_each_answer_cost(script: Callable[[str], dict[str, Any]]) -> None:
    """Rounded messages take the message's time and their own bytes; what was not timed is in the table alone."""
    natural = script("natural_text")
    right = {
        "message": 3,
        "message_int4": 2,
        "mismatched": 0,
        "other_text": 0,
        "t2t_200": 2,
        "t2t_50": 1,
        "own_context": 0,
    }
    sent = {"message": {"float16": 4000, "int8": 2000, "int4": 1000}, "t2t_50": {"UTF-8": 60}, "t2t_200": {"UTF-8": 80}}
    seconds = {"message": 1.0, "t2t_50": 3.0, "t2t_200": 9.0, "own_context": 0.5}
    latency = {arm: {"ttft": {"median": 1000 * s}, "sent_bytes": sent.get(arm, {})} for arm, s in seconds.items()}
    answers = [answer(str(n), arm, float(n < hits)) for arm, hits in right.items() for n in range(4)]
    found = natural["Found"](answers, {"latency": {"arms": latency}})
    untimed = natural["Found"](answers, {"latency": None})
    table = natural["table"]({"ours": found, "other": untimed})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [line[0] for line in lines[2:]] == [f"{name}: {arm}" for name in ("ours", "other") for arm in right]
    assert [line[-2:] for line in lines[2:5]] == [["1.00", "4,000"], ["1.00", "1,000"], ["", ""]]

    time, size = (
        {curve.get_label(): curve.lines[0].get_xydata().tolist() for curve in panel.containers}
        for panel in natural["plot"]({"ours": found, "other": untimed}).axes
    )
    texts = "text that the sharer writes"
    assert time == {"ours": [[1.0, 0.75], [1.0, 0.5]], texts: [[3.0, 0.25], [9.0, 0.5]]}
    assert size == {"ours": [[4000, 0.75], [1000, 0.5]], texts: [[60, 0.25], [80, 0.5]]}


def test_the_largest_message_is_refused_for_little(
    script: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here of a megabyte; exit code 0 says that none cost more than is allowed."""
    monkeypatch.setattr(sys, "argv", ["refusals.py", "--megabytes", "1"])
    with pytest.raises(SystemExit) as ended:
        script("refusals")["main"]()
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\n| ") == 8


@pytest.mark.parametrize(("config", "arms"), [("quickstart_shared", 1), ("quickstart", 2)])
def test_a_receiver_is_tuned_where_a_message_would_act(
    script: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, arms: int
) -> None:
    """With a shared context on all that it reads, else on what it reads after its prefill."""
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.setattr(sys, "argv", [
        "lora_control.py", "--output", str(tmp_path / "answers.jsonl"), "--split", "validation", "--limit", "3",
        "--config", str(ROOT / "configs" / f"{config}.yaml"), "--trainer.max_steps", "2", "--data.batch_size", "4",
    ])  # fmt: skip
    lora = script("lora_control")
    fitted = []
    monkeypatch.setattr(lora["TunedReceiver"], "on_fit_end", lambda self: fitted.append(self), raising=False)
    lora["main"]()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3 * arms
    (tuned,) = fitted
    ids = torch.tensor([[5, 6, 7]])
    row = Tokens(ids, ids > 0, -torch.ones_like(ids))
    assert tuned.module.link.read_receiver(row).values[1].requires_grad == (config == "quickstart_shared")
    with torch.no_grad():
        before = tuned.module.link.read_receiver(row).values[1]
        for part in tuned.lora:
            part.fill_(0.1)
        after = tuned.module.link.read_receiver(row).values[1]
    assert torch.equal(before, after) == (config == "quickstart")
