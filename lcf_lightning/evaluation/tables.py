"""Figures as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lcf_lightning.evaluation.arms import readable
from lcf_lightning.evaluation.layer_importance import Pruning
from lcf_lightning.evaluation.report import Summary
from lcf_lightning.evaluation.seeds import Seeds
from lcf_lightning.evaluation.statistics import Corrected, count_tests, format_estimate, format_p, format_score


def as_it_is(text: str) -> Text:
    """A name for the terminal, which may come from anywhere: no markup, and nothing that moves a cursor."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def arms_table(summary: Summary, title: str, caption: str | None = None) -> Table:
    """The summary as one table for the terminal."""
    table = Table(title=title, caption=caption and as_it_is(caption))
    for column in ("questions", "arm", "exact match", "F1", "loss (nats)", "n"):
        words = column in ("questions", "arm")
        table.add_column(column, justify="left" if words else "right", no_wrap=words)
    for label, group in (("need the sharer", summary["arms"]), ("receiver's own", summary["own_questions"])):
        for arm, row in group.items():
            scores = (row["exact_match"], row["f1"], row["loss"])
            table.add_row(label, as_it_is(arm), *map(format_score, scores), str(row["n"]))
    return table


def comparison_table(comparisons: dict[str, Corrected], first: str, second: str, arm: str) -> Table:
    """Two evaluations against each other, as one table for the terminal."""
    counted = count_tests(comparisons.values())
    caption = (
        "questions that need the sharer; McNemar: exact, one-sided; is the first better? "
        f"Holm over {counted} tests, those of F1 or loss too"
    )
    table = Table(title=as_it_is(f"{arm}: {first} against {second}"), caption=caption)
    for column in ("questions", "n", "difference", "only first right", "only second right", "McNemar p", "Holm"):
        table.add_column(column, justify="left" if column == "questions" else "right")
    for name, row in comparisons.items():
        gain = format_estimate(row["gain"] or row["gain_loss"], signed=True)  # of open-ended questions nats of loss
        counts = (str(row["only_first"]), str(row["only_second"]))
        tests = map(format_p, (row["mcnemar_p"], row["mcnemar_holm"]))
        table.add_row(as_it_is(name), str(row["n"]), gain, *counts, *tests)
    return table


def seeds_table(seeds: Seeds, folders: Sequence[str]) -> Table:
    """Several seeds, as one table for the terminal."""
    caption = (
        f"{seeds['score']}, questions that need the sharer; 95 % over seeds and examples, too narrow for few seeds: "
        f"look at each; {', '.join(folders)}"
    )
    table = Table(title=f"{len(folders)} seeds", caption=as_it_is(caption))
    for column in ("", "mean", "each seed"):
        table.add_column(column)
    for signed, rows in ((False, seeds["arms"]), (True, seeds["comparisons"])):
        for name, row in rows.items():
            each = ", ".join(f"{one:{'+' if signed else ''}.3f}" for one in row["each"])
            table.add_row(as_it_is(readable(name)), format_estimate(row["mean"], signed), each)
        table.add_section()
    return table


def pruning_table(pruning: Pruning, caption: str) -> Table:
    """Scores against the number of layers kept, as one table for the terminal."""
    table = Table(title="message arm, validation split", caption=as_it_is(caption))
    for column in ("layers", "MB", "exact match", "loss (nats)", "n"):
        table.add_column(column, justify="right")
    for point in pruning["curve"]:
        mark = " ←" if point["layers"] == pruning["kept"] else ""
        scores = (f"{point['megabytes']:.2f}", format_score(point["exact_match"]), format_score(point["loss"]))
        table.add_row(f"{len(point['layers'])}{mark}", *scores, str(point["n"]))
    return table
