from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.latency import ArmLatency, Latency
from lcf_lightning.evaluation.markdown import to_markdown
from lcf_lightning.evaluation.plots import arms_figure, frontier_figure, save
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.report import Report, build_report, summarise
from lcf_lightning.evaluation.tables import arms_table
from lcf_lightning.evaluation.writing import Spread, Writing
from tests.evaluation.answers import answer as made


def answer(id: str, arm: str, exact_match: float, needs_sharer: bool = True) -> Prediction:
    return made(id, arm, exact_match, needs_sharer=needs_sharer, loss=2.0 - exact_match, f1=0.5)


def test_figures_are_means_per_arm_and_kind_of_question() -> None:
    answers = [answer(str(i), "message", float(i < 3)) for i in range(4)]
    answers += [answer("own", "message", 1.0, needs_sharer=False), answer("0", "mismatched", 0.0)]
    summary = summarise(answers)
    assert summary["arms"]["message"] == {"exact_match": 0.75, "f1": 0.5, "loss": 1.25, "n": 4}
    assert summary["arms"]["mismatched"]["n"] == 1
    assert summary["own_questions"] == {"message": {"exact_match": 1.0, "f1": 0.5, "loss": 1.0, "n": 1}}


def test_an_example_counts_once() -> None:
    """Seven examples on two ranks arrive as eight."""
    answers = [answer(str(i % 7), "message", float(i % 7 == 0)) for i in range(8)]
    figures = summarise(answers)["arms"]["message"]
    assert figures["n"] == 7
    assert figures["exact_match"] == pytest.approx(1 / 7)


def test_the_table_shows_every_arm() -> None:
    console = Console(record=True, width=120)
    console.print(
        arms_table(summarise([answer("0", "message", 1.0), answer("1", "own_context", 0.0, False)]), "runs/x")
    )
    text = console.export_text()
    assert "need the sharer" in text
    assert "receiver's own" in text
    assert all(word in text for word in ("runs/x", "message", "own_context", "1.000", "0.500"))


def latency() -> Latency:
    """Made-up times of message and two texts."""
    spread = Spread(median=10.0, min=9.0, max=12.0)
    stages = {"sharer_prefill": spread, "receiver_prefill": spread, "first_token": spread}

    def arm(ttft: float) -> ArmLatency:
        slower = Spread(median=ttft, min=ttft * 0.9, max=ttft * 1.2)
        return ArmLatency(
            stages=stages, ttft=slower, ttft_side_by_side=slower, end_of_answer=slower, to_floor=spread,
            to_floor_side_by_side=spread, sent_bytes={"float16": 2048, "int8": 1100}, written_tokens=50,
        )  # fmt: skip

    return Latency(
        arms={"message": arm(20), "own_context": arm(10), "t2t_50": arm(80), "t2t_200": arm(300)},
        floor=spread, floor_side_by_side=spread, ttft_vs_t2t={"50": Spread(median=4.0, min=3.5, max=4.5)},
        ttft_vs_t2t_side_by_side={"50": Spread(median=3.0, min=2.5, max=3.5)},
        writing=Writing(budget=50, cache="static", tokens_per_second=spread, to_generate=spread),
        repeats=7, warmup=2, device="cpu", threads=1,
    )  # fmt: skip


def report() -> Report:
    rows = []
    for arm, right in (("own_context", 1), ("t2t_50", 6), ("t2t_200", 8), ("message", 9), ("mismatched", 2)):
        rows += [made(str(i), arm, float(i < right), partner_answers=("coffee",)) for i in range(10)]
        rows += [made("own", arm, 1.0, needs_sharer=False, partner_answers=("coffee",))]
    rows = [replace(row, text_cut=row.id in "012") if row.arm.startswith("t2t") else row for row in rows]
    prompts = {"text_request": "Tell me.", "text_chat": True, "text_place": "after"}
    return build_report(
        rows, latency(), {"command": "python -m lcf_lightning evaluate", "seed": 42, "prompts": prompts}
    )


def test_a_report_has_intervals_around_the_summarys_means() -> None:
    rows = [made(str(i % 10), "message", float(i % 10 < 9), f1=0.95) for i in range(12)]  # two of them twice
    found, summary = build_report(rows, None, {"seed": 1}), summarise(rows)
    figures = found["arms"]["message"]
    assert figures["n"] == 10
    for name in ("exact_match", "f1"):
        assert figures[name]["value"] == pytest.approx(summary["arms"]["message"][name])
    assert figures["exact_match"]["low"] < 0.9 < figures["exact_match"]["high"]
    assert json.loads(json.dumps(found)) == found  # report.json is all of it
    assert (found["latency"], found["own_questions"]) == (None, {})


def test_the_page_shows_every_figure() -> None:
    found = report()
    page = to_markdown(found)
    for arm, figures in found["arms"].items():
        (row,) = [
            line
            for line in page.splitlines()
            if line.startswith(f"| {find_arm(arm).label} | {figures['exact_match']['value']:.3f}")
        ]
        assert f"[{figures['exact_match']['low']:.3f}, {figures['exact_match']['high']:.3f}]" in row
    gain = found["audit"]["comparisons"]["content_attributable_gain"]
    assert "| content attributable gain (message − mismatched) | +0.700" in page
    assert f"McNemar p = {gain['mcnemar_holm']:.2g} (7 questions against 0)" in page
    assert gain["mcnemar_holm"] > gain["mcnemar_p"]
    assert f"corrected over the {found['audit']['tests']} tests of this report" in page
    assert "Message − text, with form or without, whichever is better: T2T-50: exact match +0.300" in page
    assert "; T2T-200: exact match +0.100 [" in page
    assert "dealt at random" in page
    assert "*tea* is right in 1.000 [0.722, 1.000], the best of 1 answers" in page
    assert "2,048 (float16), 1,100 (int8)" in page
    assert "side by side 3.00 (2.50–3.50)" in page
    assert "10.00 (9.00–12.00) × plain `generate`" in page
    assert "| T2T-50 | 50 | 0.273 [0.097, 0.566] | 11 |" in page  # of own questions too
    assert "`'Tell me.'`, as a turn of its chat template; the receiver reads the text after" in page
    assert "T2T-50 (50 tokens written) / message = 4.00 (3.50–4.50)" in page
    assert "Follow rate" in page
    assert "- command: python -m lcf_lightning evaluate" in page
    assert "questions that the receiver can answer alone" in page
    widths = [{line.count("|") for line in block.splitlines()} for block in page.split("\n\n") if block.startswith("|")]
    assert len(widths) == 6
    assert all(len(width) == 1 for width in widths)  # no row of any table lacks a cell


def test_the_page_leaves_out_what_was_not_measured() -> None:
    page = to_markdown(build_report([made("1", "message", 1.0)], None, {}))
    assert "Latency" not in page
    assert "frontier.png" not in page
    assert "Follow rate" not in page
    assert "| message | 1.000" in page


def drawn_texts(figure: Figure) -> list[Text]:
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    ticks = [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()]  # those in view
    texts = [
        *axes.texts,
        axes.xaxis.label,
        axes.yaxis.label,
        *ticks,
        *(text for legend in figure.legends for text in legend.get_texts()),
        *([figure._suptitle] if figure._suptitle else []),
    ]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("kind", ["arms", "frontier"])
def test_plots_are_labelled_and_nothing_overlaps(kind: str, tmp_path: Path) -> None:
    found = report()
    assert found["latency"] is not None
    figure = arms_figure(found) if kind == "arms" else frontier_figure(found)
    texts = drawn_texts(figure)
    (axes,) = figure.axes  # exact match and F1 are the same here
    assert axes.get_xlabel()
    assert f"n = {found['arms']['message']['n']}" in figure.get_suptitle()
    assert any("most frequent answer" in text.get_text() for text in figure.legends[0].get_texts())
    shown = {text.get_text() for text in texts}
    named = found["arms"] if kind == "arms" else {arm: 0 for arm in found["arms"] if arm in found["latency"]["arms"]}
    assert {find_arm(arm).label for arm in named} <= shown
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    bounds = figure.bbox
    for text, box in boxes:
        assert bounds.x0 <= box.x0 <= box.x1 <= bounds.x1, text
        assert bounds.y0 <= box.y0 <= box.y1 <= bounds.y1, text
    overlapping = [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]
    assert overlapping == []
    save(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_text_with_form_stands_at_its_own_score_where_it_is_better() -> None:
    rights = {"message": 9, "t2t_50": 3, "t2t_50_form": 7, "t2t_200": 6, "t2t_200_form": 2}
    rows = [made(str(i), arm, float(i < right)) for i in range(10) for arm, right in rights.items()]
    figure = frontier_figure(build_report(rows, latency(), {}))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["message", "T2T-50 + form", "T2T-200", "the most frequent answer, 1.000"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.7, 0.6]


def test_texts_that_are_answered_alike_are_one_bar_and_f1_has_a_panel_of_its_own() -> None:
    rights = {"own_context": 1, "t2t_50": 3, "t2t_100": 3, "t2t_150": 4, "message": 4}
    rows = [
        replace(made(str(i), arm, float(i < right)), f1=max(0.5, float(i < right)))
        for i in range(10)
        for arm, right in rights.items()
    ]
    figure = arms_figure(build_report(rows, None, {}))
    assert [axes.get_xlabel().split(",")[0] for axes in figure.axes] == ["exact match", "F1"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["own context", "T2T-50 … 100", "T2T-150", "message"]
    assert [len(axes.patches) for axes in figure.axes] == [4, 4]
