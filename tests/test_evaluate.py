"""``evaluate`` from the command line to the report, on the embedded pair."""

from __future__ import annotations

import json
import re
import shutil
import signal
import string
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import lcf_lightning.evaluation.predictions as evaluation
from lcf_lightning.adapter.folder import CONFIG_FILE
from lcf_lightning.cli import main
from lcf_lightning.evaluation.arms.text_to_text import TextToText
from lcf_lightning.evaluation.predictions import read_predictions
from lcf_lightning.files import FolderLock
from tests.evaluation.answers import answer
from tests.pairs import ARMS
from tests.test_cli import QUICK

FEW = ["own_context", "message", "mismatched", "t2t_3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main(["fit", *QUICK, "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "2"])
    return folder


def evaluate(run: Path, output: Path, *extra: str, arms: list[str] = FEW) -> Path:
    main(["evaluate", *QUICK, "--trainer.default_root_dir", str(run), "--output", str(output), "--repeats", "1",
          "--arms", json.dumps(arms), *extra])  # fmt: skip
    return output


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_the_default_is_every_arm_in_one_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", *QUICK, "--trainer.default_root_dir", str(run), "--repeats", "1"])
    folder, printed = run / "evaluation", capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "arms.png", "frontier.png", "predictions.jsonl", "report.json", "report.md", "settings.json"
    }  # fmt: skip
    found = report(folder)
    assert tuple(found["arms"]) == tuple(found["own_questions"]) == ARMS
    assert found["arms"]["message"]["n"] + found["own_questions"]["message"]["n"] == 14
    assert len(lines(folder)) == 14 * len(ARMS)
    assert {"content_attributable_gain", "self_substitution_gap", "gain_over_t2t_200"} <= set(
        found["audit"]["comparisons"]
    )
    assert set(found["latency"]["ttft_vs_t2t"]) == {"50", "100", "150", "200"}
    assert found["facts"]["training_steps"] == 2
    assert found["facts"]["command"].startswith("lcf-lightning evaluate --config")
    assert all(arm in printed for arm in ARMS)
    assert "Content-attributable gain" in printed


def test_who_has_read_nothing_sends_nothing_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arms by default, but for `self` where the question is hidden and no receiver has a text."""
    monkeypatch.setattr(TextToText, "usual", lambda: [TextToText(2)])
    source = "--data.init_args.source.init_args."
    settings = [f"{source}receiver_facts", "0", f"{source}own_questions", "0"]
    blind = ["--data.init_args.prompts.share_question", "false"]
    run, output = ["--trainer.default_root_dir", str(tmp_path / "run")], tmp_path / "out"
    main(["fit", *QUICK, *settings, *blind, *run, "--trainer.max_steps", "1"])
    main(["evaluate", *QUICK, *settings, *blind, *run, "--output", str(output), "--repeats", "0"])
    assert list(report(output)["arms"]) == [
        "question_only", "own_context", "full_context", "full_context_form", "t2t_2", "t2t_2_form", "message",
        "mismatched", "permuted", "zero", "noise",
    ]  # fmt: skip
    assert report(output)["own_questions"] == {}


def plain_words(text: str) -> list[str]:
    """SQuAD's normalisation, written out."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def plain_scores(prediction: str, gold: str) -> tuple[float, float]:
    mine, theirs = plain_words(prediction), plain_words(gold)
    common = sum((Counter(mine) & Counter(theirs)).values())
    exact = float(mine == theirs)
    if common == 0:
        return exact, exact
    precision, recall = common / len(mine), common / len(theirs)
    return exact, 2 * precision * recall / (precision + recall)


def test_every_figure_follows_from_the_predictions(run: Path, tmp_path: Path) -> None:
    """Recomputed from predictions.jsonl without any code of the package."""
    folder = evaluate(run, tmp_path / "out", "--model.max_new_tokens", "6", arms=[*FEW, "self", "full_context"])
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for row in lines(folder):
        if row["needs_sharer"]:
            best = [
                max(values)
                for values in zip(*(plain_scores(row["prediction"], gold) for gold in row["answers"]), strict=True)
            ]
            scores.setdefault(row["arm"], {})[row["id"]] = (best[0], best[1])
    found = report(folder)
    for arm, by_id in scores.items():
        means = [sum(values) / len(by_id) for values in zip(*by_id.values(), strict=True)]
        assert found["arms"][arm]["exact_match"]["value"] == pytest.approx(means[0])
        assert found["arms"][arm]["f1"]["value"] == pytest.approx(means[1])
        assert found["arms"][arm]["n"] == len(by_id)
    gains = [scores["message"][id][0] - scores["mismatched"][id][0] for id in scores["message"]]
    gain = found["audit"]["comparisons"]["content_attributable_gain"]
    assert gain["gain"]["value"] == pytest.approx(sum(gains) / len(gains))
    assert (gain["only_first"], gain["only_second"]) == (gains.count(1), gains.count(-1))
    assert found["arms"]["full_context"]["exact_match"]["value"] > 0.9  # so the script has something to count


class Interrupted(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(run, tmp_path / "whole")
    answered: list[str] = []
    plain = evaluation.run_arms

    def watched(caches: Any, arms: list[str], limit: int) -> Any:
        answered.extend(f"{arm} {id}" for arm in arms for id in caches.batch.ids)
        return plain(caches, arms, limit)

    def failing(caches: Any, arms: list[str], limit: int) -> Any:
        if len(answered) == 30:
            raise Interrupted
        return watched(caches, arms, limit)

    monkeypatch.setattr(evaluation, "run_arms", failing)
    with pytest.raises(Interrupted):
        evaluate(run, tmp_path / "cut")
    file = tmp_path / "cut" / "predictions.jsonl"
    assert len(file.read_text().splitlines()) == 30
    file.write_text(file.read_text()[:-20])  # and the last line was half-written
    monkeypatch.setattr(evaluation, "run_arms", watched)
    answered.clear()
    resumed = evaluate(run, tmp_path / "cut")
    assert len(answered) == 14 * len(FEW) - 24  # whole batches of six; the torn line's batch is answered again

    def rows(folder: Path) -> set[str]:
        return {
            json.dumps({**row, "loss": round(row["loss"], 4), "listening": round(row["listening"], 4)})
            for row in lines(folder)
        }

    assert rows(resumed) == rows(whole)
    assert len(lines(resumed)) == len(lines(whole))
    assert report(resumed)["arms"]["message"]["n"] == report(whole)["arms"]["message"]["n"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(
    number: signal.Signals,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(evaluation, "run_arms", interrupt)
    with pytest.raises(SystemExit) as stopped:
        evaluate(run, tmp_path / "out")
    assert stopped.value.code == 128 + number
    ending = f"stopped: {number.name} ended evaluate before its end; the same command goes on where it stopped"
    assert ending in capfd.readouterr().err


def test_an_evaluation_can_be_extended_but_never_mixed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluate(run, tmp_path / "out", "--limit", "5", arms=["message"])
    first = lines(folder)
    assert len(first) == 5
    evaluate(run, folder, "--limit", "7", "--data.eval_batch_size", "4", arms=["message", "zero"])
    assert lines(folder)[:5] == first
    assert len(lines(folder)) == 14
    assert report(folder)["arms"]["zero"]["n"] == report(folder)["arms"]["message"]["n"]
    evaluate(run, folder, "--limit", "5", arms=["message"])
    both = report(folder)["arms"]["message"]["n"] + report(folder)["own_questions"]["message"]["n"]
    assert both == 5  # what is asked for is reported, what was known is kept
    assert len(lines(folder)) == 14
    evaluate(run, folder, "--limit", "5", "--data.prompts.spans", "sentence", arms=["message"])
    assert "held the evaluation of another adapter or other settings; moved to" in capsys.readouterr().err
    (aside,) = [path for path in tmp_path.iterdir() if path.name.startswith("out-")]
    assert len(lines(aside)) == 14
    assert len(lines(folder)) == 5


def test_other_prompts_than_in_training_are_remarked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, tmp_path / "a", "--limit", "2", "--data.prompts.text", "{text} . ", arms=["message"])
    assert "other prompts" not in capsys.readouterr().err  # the text baseline's are no part of training
    evaluate(run, tmp_path / "b", "--limit", "2", "--data.prompts.spans", "sentence", arms=["message"])
    assert "warning: the adapter was trained with other prompts: spans differ." in capsys.readouterr().err
    older = tmp_path / "older"  # of a time when a message held every token: it does not say so
    shutil.copytree(run / "adapter", older)
    config = json.loads((older / CONFIG_FILE).read_text())
    del config["metadata"]["prompts"]["send_tokens"]
    (older / CONFIG_FILE).write_text(json.dumps(config))
    selected = ["--adapter", str(older), "--limit", "2", "--data.prompts.send_tokens"]
    evaluate(run, tmp_path / "c", *selected[:-1], arms=["message"])
    assert "other prompts" not in capsys.readouterr().err
    evaluate(run, tmp_path / "d", *selected, "2", arms=["message"])
    assert "warning: the adapter was trained with other prompts: send_tokens differ." in capsys.readouterr().err


def test_arms_may_be_separated_by_commas(run: Path, tmp_path: Path) -> None:
    main(["evaluate", *QUICK, "--trainer.default_root_dir", str(run), "--output", str(tmp_path / "a"), "--repeats", "0",
          "--limit", "2", "--arms", "zero, message"])  # fmt: skip
    assert {line["arm"] for line in lines(tmp_path / "a")} == {"message", "zero"}


def test_latency_can_be_left_out_and_batches_limited_by_tokens(run: Path, tmp_path: Path) -> None:
    few_rows = ("--limit", "2", "--repeats", "0")
    folder = evaluate(run, tmp_path / "out", *few_rows, arms=["message"])
    few = evaluate(run, tmp_path / "few", *few_rows, "--data.eval_batch_tokens", "9", arms=["message"])
    assert (report(folder)["latency"], (folder / "frontier.png").exists()) == (None, False)
    assert [line["id"] for line in lines(few)] == [line["id"] for line in lines(folder)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "[telepathy]"], "arms=['telepathy'] must be one or more of sharer_alone, question_only"),
        (["--limit", "0"], "limit=0 must be at least 1, or null for all"),
        (["--repeats", "-1"], "repeats=-1 must be at least 0"),
        (["--adapter", "/no/such/folder"], "adapter='/no/such/folder' is no folder here; it would be /no/such/folder."),
        (["--model.receiver.path", "tiny-sharer"], "layers is 3, expected 4"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_sentence(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *QUICK, "--trainer.default_root_dir", str(run), "--output", str(tmp_path / "o"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_line_separators_within_a_text_end_no_line(tmp_path: Path) -> None:
    odd = answer("1", "t2t_50", 1.0, text="one\u2028two\u0085three", prediction="\u2029")
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(asdict(odd), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_predictions(file) == [odd]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4


def test_a_folder_that_holds_other_things_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(SystemExit) as stopped:
        evaluate(run, run)
    assert stopped.value.code == 2
    assert "must be a folder of its own; it holds adapter" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_two_that_write_into_one_folder_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, folder, setting in ((evaluate, tmp_path / "out", "output"), (fit_again, run, "default_root_dir")):
        with FolderLock(folder, setting), pytest.raises(SystemExit) as stopped:
            command(run, folder)
        assert stopped.value.code == 2
        assert f"{setting}='{folder}' is being written by another process" in capsys.readouterr().err
    assert (run / "adapter").is_dir()  # nothing was moved aside


def fit_again(run: Path, folder: Path) -> None:
    assert run == folder
    main(["fit", *QUICK, "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "2"])


def test_a_damaged_predictions_file_is_named(tmp_path: Path) -> None:
    from lcf_lightning.errors import DataError

    assert read_predictions(tmp_path / "none.jsonl") == []
    (tmp_path / "p.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 1 is not an answer of this version"):
        read_predictions(tmp_path / "p.jsonl")
