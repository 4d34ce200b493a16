"""An evaluation's report as a page that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcf_lightning.evaluation.arms import find_arm, readable
from lcf_lightning.evaluation.audit import Audit
from lcf_lightning.evaluation.latency import STAGES, Latency, Spread
from lcf_lightning.evaluation.layer_importance import Pruning
from lcf_lightning.evaluation.report import ArmFigures, Report
from lcf_lightning.evaluation.statistics import RESAMPLES, format_estimate

_HOW_TO_READ = f"""\
*Listening*: Jensen–Shannon divergence of the first token's distribution from own context, in nats (≤ 0.693). Intervals:
95 %, percentile bootstrap, {RESAMPLES:,} resamples."""


_OPTIMAL_ROUTING = """\
*Own context* is the receiver alone. *Optimal routing*: the sharer alone or the receiver alone is right; what one would
reach who always asked the right one of the two. *All*: every question counts once, the average weighted by size."""


def to_markdown(report: Report) -> str:
    """The whole report: facts, arms, audit and latency."""
    parts = [
        "# Evaluation",
        conclusions(report),
        _facts(report["facts"]),
        "## Arms, on questions that need the sharer",
        _arms(report["arms"], report["audit"]),
        " ".join([*dict.fromkeys(filter(None, (find_arm(arm).note for arm in report["arms"]))), _HOW_TO_READ]),
        "![Arms](arms.png)",
    ]
    if report["optimal_routing"]:
        parts += ["## Benchmarks", _benchmarks(report), _OPTIMAL_ROUTING]
    if report["own_questions"]:
        parts += ["## Arms, on questions that the receiver can answer alone", _arms(report["own_questions"])]
    parts += ["## Audit, on questions that need the sharer", _audit(report["audit"])]
    if report["latency"] is not None:
        parts += ["## Latency", latency_page(report["latency"]), "![Quality against time](frontier.png)"]
    return "\n\n".join(parts) + "\n"


def conclusions(report: Report) -> str:
    """What it comes to, as a list: content-attributable gain, follow rate, time against text."""
    audit, latency = report["audit"], report["latency"]
    lines = []
    if "content_attributable_gain" in audit["comparisons"]:
        gain = audit["comparisons"]["content_attributable_gain"]
        lines.append(
            f"Content-attributable gain (message − mismatched, exact match, n = {gain['n']}): "
            f"{format_estimate(gain['gain'], signed=True)}; McNemar p = {gain['mcnemar_p']:.2g} "
            f"({gain['only_first']} questions against {gain['only_second']})."
        )
    if audit["follow_rate"] is not None:
        lines.append(
            f"Follow rate: under another example's message the receiver gives that example's answer in "
            f"{format_estimate(audit['follow_rate'])} of {audit['follow_n']} questions whose own answer "
            "is another and whose partner's needs the sharer."
        )
    if latency is not None:
        message = latency["arms"]["message"]
        ratios = [
            f"T2T-{budget} ({latency['arms'][f't2t_{budget}']['written_tokens']} tokens written) / message = "
            f"{_spread(ratio, 2)}"
            for budget, ratio in latency["ttft_vs_t2t"].items()
        ]
        lines.append(
            f"Time to first token of the message: {_spread(message['ttft'])} ms, {_spread(message['to_floor'], 2)} × "
            f"the floor{'; '.join(['', *ratios])}; median (least–greatest) of {latency['repeats']}."
        )
    return "\n".join(f"- {line}" for line in lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _facts(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())


def _arms(arms: Mapping[str, ArmFigures], audit: Audit | None = None) -> str:
    columns = ["arm", "exact match", "F1", "loss (nats)", "n", *(["listening"] if audit else [])]
    rows = []
    for arm, row in arms.items():
        cells = [
            find_arm(arm).label,
            format_estimate(row["exact_match"]),
            format_estimate(row["f1"]),
            f"{row['loss']:.3f}",
            str(row["n"]),
        ]
        rows.append([*cells, *([_listening(audit, arm)] if audit else [])])
    return _table(columns, rows)


def _benchmarks(report: Report) -> str:
    """Exact match of every arm on every benchmark and on all, and of optimal routing."""
    groups = {"all": report["arms"], **report["benchmarks"]}
    counted = [f"{name} (n = {max(row['n'] for row in arms.values())})" for name, arms in groups.items()]
    rows = [
        [
            find_arm(arm).label,
            *(format_estimate(arms[arm]["exact_match"]) if arm in arms else "–" for arms in groups.values()),
        ]
        for arm in report["arms"]
    ]
    routing = report["optimal_routing"]
    rows.append(["optimal routing", *(format_estimate(routing[name]) if name in routing else "–" for name in groups)])
    return _table(["arm", *counted], rows)


def _listening(audit: Audit, arm: str) -> str:
    return f"{audit['listening'][arm]['value']:.3f}" if arm in audit["listening"] else "–"


def _audit(audit: Audit) -> str:
    columns = [
        "difference", "exact match", "F1", "n", "only first right", "only second right", "McNemar p", "Wilcoxon p (F1)",
    ]  # fmt: skip
    rows = []
    for name, row in audit["comparisons"].items():
        counts = [str(row[key]) for key in ("n", "only_first", "only_second")]
        chances = [f"{row[key]:.2g}" for key in ("mcnemar_p", "wilcoxon_p")]
        gains = [format_estimate(row["gain"], signed=True), format_estimate(row["gain_f1"], signed=True)]
        title = f"{readable(name)} ({find_arm(row['first']).label} − {find_arm(row['second']).label})"
        rows.append([title, *gains, *counts, *chances])
    return _table(columns, rows) + "\n\nTests are one-sided: is the first better? McNemar exact, on discordant pairs."


def _spread(spread: Spread, digits: int = 1) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f}–{spread['max']:.{digits}f})"


def latency_page(latency: Latency) -> str:
    """The latencies as tables, with what they mean."""
    columns = ["arm", "first token", "side by side", "end of answer", "to the floor", "side by side", "bytes", "tokens"]
    rows = [
        [
            find_arm(arm).label, _spread(row["ttft"]), _spread(row["ttft_side_by_side"]), _spread(row["end_of_answer"]),
            _spread(row["to_floor"], 2), _spread(row["to_floor_side_by_side"], 2), f"{row['sent_bytes']:,}",
            str(row["written_tokens"] or "–"),
        ]
        for arm, row in latency["arms"].items()
    ]  # fmt: skip
    stages = [
        [find_arm(arm).label, *(_spread(row["stages"][stage]) if stage in row["stages"] else "–" for stage in STAGES)]
        for arm, row in latency["arms"].items()
    ]
    return "\n\n".join(
        [
            f"Milliseconds, median (least–greatest) of {latency['repeats']} repeats after {latency['warmup']} thrown "
            f"away; batch 1, {latency['device']}, {latency['threads']} torch threads. Every prefill that "
            "an arm needs is counted, one after the other or side by side. "
            f"Floor, both prefills and one decoding step: {_spread(latency['floor'])}; side by side: "
            f"{_spread(latency['floor_side_by_side'])}. Bytes and tokens: what the sharer sends.",
            _table(columns, rows),
            _table(["stage", *(stage.replace("_", " ") for stage in STAGES)], stages),
        ]
    )


def pruning_page(pruning: Pruning) -> str:
    """What each number of layers is worth, and what each layer is."""
    rows = [
        [
            str(len(point["layers"])) + (" (kept)" if point["layers"] == pruning["kept"] else ""),
            f"{point['megabytes']:.2f}", f"{point['exact_match']:.3f}", f"{point['loss']:.3f}", str(point["n"]),
        ]
        for point in pruning["curve"]
    ]  # fmt: skip
    ranked = sorted(pruning["importance"].items(), key=lambda item: -item[1])
    return "\n\n".join(
        [
            "Message arm, validation split; the most important layers first, 0 layers are the receiver alone.",
            _table(["layers", "MB", "exact match", "loss (nats)", "n"], rows),
            f"Layers kept: {', '.join(map(str, pruning['kept']))}. Closed gates, so without effect: "
            f"{', '.join(map(str, pruning['closed'])) or 'none'}.",
            "Importance, the rise of the loss without the layer (nats): "
            + ", ".join(f"{layer}: {rise:+.4f}" for layer, rise in ranked)
            + ".",
            "![Pruning](pruning.png)",
        ]
    )
