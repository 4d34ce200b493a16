"""An evaluation's report as a page that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcf_lightning.evaluation.arms import find_arm, readable
from lcf_lightning.evaluation.audit import ArmComparison, Audit
from lcf_lightning.evaluation.latency import STAGES, Latency
from lcf_lightning.evaluation.layer_importance import Pruning
from lcf_lightning.evaluation.nulls import PERMUTATIONS, Follow, Guess
from lcf_lightning.evaluation.report import ArmFigures, Report
from lcf_lightning.evaluation.statistics import RESAMPLES, Corrected, format_estimate, format_p, format_score
from lcf_lightning.evaluation.verdict import meaning
from lcf_lightning.evaluation.writing import Spread, Writing

_HOW_TO_READ = f"""\
*Listening*: Jensen–Shannon divergence of the first token's distribution from own context, in nats (≤ 0.693). Intervals:
95 %; of a rate Wilson's, of other means and of differences the percentile bootstrap, {RESAMPLES:,} resamples."""


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
    if report["texts"]:
        parts += ["## What the sharer was asked to write", _texts(report)]
    parts += ["## Audit, on questions that need the sharer", _audit(report["audit"])]
    if report["latency"] is not None:
        parts += ["## Latency", latency_page(report["latency"]), "![Quality against time](frontier.png)"]
    return "\n\n".join(parts) + "\n"


def conclusions(report: Report) -> str:
    """What it comes to, as a list: gain, gain over text, follow rate, guesses, time against text."""
    audit, latency = report["audit"], report["latency"]
    lines = [] if report["verdict"] is None else [f"Verdict: {meaning(report['verdict'])}."]
    if "content_attributable_gain" in audit["comparisons"]:
        gain = audit["comparisons"]["content_attributable_gain"]
        lines.append(f"Content-attributable gain (message − mismatched, n = {gain['n']}): {_gain(gain)}.")
    texts = [audit["comparisons"][name] for name in audit["over_text"].values()]
    if texts:
        lines.append(f"Message − text, with form or without, whichever is better: {_over_texts(texts)}.")
    if audit["follow"] is not None:
        lines.append(_followed(audit["follow"], audit["follow_holm"]))
    if audit["listening_gain"] is not None:
        gained = format_estimate(audit["listening_gain"], signed=True)
        lines.append(
            f"Listening: by the message the distribution of the first token changes {gained} nats more than by another "
            "example's (Jensen–Shannon divergence from that under own context)."
        )
    lines += [_guessed(name, found) for name, found in report["guesses"].items()]
    if latency is not None:
        lines.append(_sooner(latency))
    return "\n".join(f"- {line}" for line in lines)


def _over_texts(texts: Sequence[ArmComparison]) -> str:
    """The message's gain over each text; texts that come to the same together."""
    alike: dict[str, list[str]] = {}
    for row in texts:
        scored = "" if row["gain"] is None else "exact match "
        alike.setdefault(f"{scored}{_difference(row)} (n = {row['n']})", []).append(find_arm(row["second"]).label)
    return "; ".join(f"{', '.join(labels)}: {gain}" for gain, labels in alike.items())


def _difference(row: Corrected) -> str:
    """In exact match, or in nats of loss where questions are open-ended."""
    if row["gain"] is None:
        return f"{format_estimate(row['gain_loss'], signed=True)} nats of loss"
    return format_estimate(row["gain"], signed=True)


def _gain(row: Corrected) -> str:
    if row["gain"] is None:
        return f"{_difference(row)}; Wilcoxon p = {format_p(row['wilcoxon_holm'])}"
    return (
        f"exact match {_difference(row)}; McNemar p = {format_p(row['mcnemar_holm'])} "
        f"({row['only_first']} questions against {row['only_second']})"
    )


def _followed(follow: Follow, p: float | None) -> str:
    alone = "" if follow["own_context"] is None else f"under own context {format_estimate(follow['own_context'])}; "
    return (
        "Follow rate: under another example's message its answer, where it is a different one, is given to "
        f"{format_estimate(follow['rate'])} of {follow['n']} questions ({alone}with answers dealt at random "
        f"{format_estimate(follow['permuted'])}, p = {format_p(p)}, {PERMUTATIONS:,} deals)."
    )


def _guessed(name: str, guess: Guess) -> str:
    chance = "" if guess["chance"] is None else f"; a choice at random {guess['chance']:.3f}"
    of = "" if name == "all" else f" of {name}"
    return (
        f"Guesses{of}: *{guess['answer']}* is right in {format_estimate(guess['majority'])}, the best of "
        f"{guess['different']} answers looked up on these questions{chance}."
    )


def _sooner(latency: Latency) -> str:
    message = latency["arms"]["message"]
    ratios = [
        f"T2T-{budget} ({latency['arms'][f't2t_{budget}']['written_tokens']} tokens written) / message = "
        f"{_spread(ratio, 2)}, side by side {_spread(latency['ttft_vs_t2t_side_by_side'][budget], 2)}"
        for budget, ratio in latency["ttft_vs_t2t"].items()
    ]
    read = latency["arms"].get("full_context")
    full = f"; a receiver that reads everything as text: {_spread(read['ttft'])} ms" if read else ""
    return (
        f"Time to first token of the message: {_spread(message['ttft'])} ms, {_spread(message['to_floor'], 2)} × "
        f"the floor{'; '.join(['', *ratios])}{full}; median (least–greatest) of {latency['repeats']}."
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _facts(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())


def _texts(report: Report) -> str:
    """The request, the budgets and how many texts these cut off."""
    prompts = report["facts"].get("prompts", {})
    how = "as a turn of its chat template" if prompts.get("text_chat") or prompts.get("chat") else "as plain text"
    asked = f"`{prompts.get('text_request', '')!r}`, {how}; "
    place = f"the receiver reads the text {prompts.get('text_place')} its own context."
    rows = [
        [find_arm(arm).label, str(text["budget"]), format_estimate(text["cut"]), str(text["n"])]
        for arm, text in report["texts"].items()
    ]
    return "\n\n".join([asked + place, _table(["arm", "budget, tokens", "share cut by the budget", "n"], rows)])


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
    counted = [f"{name} (n = {max((row['n'] for row in arms.values()), default=0)})" for name, arms in groups.items()]
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
        "difference", "exact match", "F1", "loss saved (nats)", "n", "only first right", "only second right",
        "McNemar p", "Wilcoxon p",
    ]  # fmt: skip
    rows = []
    for name, row in audit["comparisons"].items():
        gains = [format_estimate(gain, signed=True) for gain in (row["gain"], row["gain_f1"], row["gain_loss"])]
        counts = [str(row["n"]), str(row["only_first"]), str(row["only_second"])]
        title = f"{readable(name)} ({find_arm(row['first']).label} − {find_arm(row['second']).label})"
        rows.append([title, *gains, *counts, format_p(row["mcnemar_holm"]), format_p(row["wilcoxon_holm"])])
    family = (
        "Tests are one-sided: is the first better? McNemar exact, on discordant pairs; Wilcoxon of F1, of the loss "
        f"where answers are open-ended. The p-values are Holm's, corrected over the {audit['tests']} tests of this "
        "report: those of this table and, where something can be followed, the permutation test of the follow rate."
    )
    return _table(columns, rows) + "\n\n" + family


def _spread(spread: Spread, digits: int = 1) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f}–{spread['max']:.{digits}f})"


def latency_page(latency: Latency) -> str:
    """The latencies as tables, with what they mean."""
    columns = ["arm", "first token", "side by side", "end of answer", "to the floor", "side by side", "bytes", "tokens"]
    rows = [
        [
            find_arm(arm).label, _spread(row["ttft"]), _spread(row["ttft_side_by_side"]), _spread(row["end_of_answer"]),
            _spread(row["to_floor"], 2), _spread(row["to_floor_side_by_side"], 2), _bytes(row["sent_bytes"]),
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
            f"{_spread(latency['floor_side_by_side'])}. Tokenising is outside of all times. Bytes and tokens: what the "
            "sharer sends, a message with its header, a summary for each span." + _writing(latency["writing"]),
            _table(columns, rows),
            _table(["stage", *(stage.replace("_", " ") for stage in STAGES)], stages),
        ]
    )


def _bytes(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{size:,} ({name})" for name, size in sent.items()) or "–"


def _writing(writing: Writing | None) -> str:
    if writing is None:
        return ""
    return (
        f" The sharer writes {_spread(writing['tokens_per_second'])} tokens a second, its prefill included (budget "
        f"{writing['budget']}, {writing['cache']} cache, the faster one here): {_spread(writing['to_generate'], 2)} × "
        "plain `generate`."
    )


def pruning_page(pruning: Pruning) -> str:
    """What each number of layers is worth, and what each layer is."""
    rows = [
        [
            str(len(point["layers"])) + (" (kept)" if point["layers"] == pruning["kept"] else ""),
            f"{point['megabytes']:.2f}", format_score(point["exact_match"]), format_score(point["loss"]),
            str(point["n"]),
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
