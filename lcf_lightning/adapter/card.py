"""The model card that travels with an adapter: what it is, how it was trained, how it did, and lines that use it."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.hub import is_hub_id
from lcf_lightning.adapter.parts import split_name

CARD_FILE = "README.md"
LICENSE = "apache-2.0"
TASK = "text-generation"
_QUESTION = "What does Ada like?"
_NOTE = """Exact match with its 95 % interval where there is one. `own_context` is the receiver without a message;
`mismatched` has another example's message: what an adapter gains there it has tuned, and not communicated."""


def card(config: AdapterConfig, parameters: int, size: int, location: str) -> str:
    """The text of a model card; its head is what the hub reads: models, licence, task, data sets, figures.

    Args:
        config: The adapter's config; ``metadata`` may hold ``source``, ``datasets``, ``license``, ``steps``, ``seed``,
            ``scores`` (by arm) and ``scored_on`` (of which data; by default ``source``).
        parameters: Number of parameters.
        size: Bytes of the weights file.
        location: The folder, or ``owner/name``, that the card's code loads.
    """
    trained, kind = config.metadata, config.settings.label
    facts = {
        "Method": f"{kind}, d = {config.settings.d}",
        "Sharer": _model(config, "sharer"),
        "Receiver": _model(config, "receiver"),
        "Receiver layers": f"{len(config.receiver_layers)} of {config.receiver.geometry.layers}",
        "Parameters": f"{parameters:,}",
        "Size": f"{size / 1e6:.2f} MB",
        "Data": trained.get("source", "not recorded"),
        "Steps": trained.get("steps", "not recorded"),
        "Seed": trained.get("seed", "not recorded"),
    }
    lines = [
        "---", _head(config, location).to_yaml(), "---", "",
        f"# {kind} adapter", "",
        "Lets one frozen language model talk to another through KV caches (Latent Cache Flow, arXiv 2605.22863).", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), "",
        *_scores(config),
        "```python", *_code(config, location), "```", "",
        "The weights here are the adapter's alone; the models' own licences hold for the models. Where these lie",
        "elsewhere than in training: `Channel.from_pretrained(…, sharer=PATH, receiver=PATH)`.", "",
    ]  # fmt: skip
    return str(ModelCard("\n".join(lines)))


def _head(config: AdapterConfig, location: str) -> ModelCardData:
    trained = config.metadata
    models = [model.path for model in (config.sharer, config.receiver) if is_hub_id(model.path)]
    return ModelCardData(
        base_model=list(dict.fromkeys(models)) or None,  # the hub takes ids only
        library_name="lcf_lightning",
        license=trained.get("license") or LICENSE,
        pipeline_tag=TASK,
        datasets=trained.get("datasets") or None,
        tags=["latent-cache-flow", "kv-cache"],
        model_name=location.rstrip("/").rpartition("/")[2],
        eval_results=_results(config) or None,
    )


def _results(config: AdapterConfig) -> list[EvalResult]:
    """Each arm's exact match and F1, or its loss where questions are open-ended."""
    data = _scored_on(config)
    return [
        EvalResult(
            task_type=TASK, dataset_type=data, dataset_name=data, metric_type=name, metric_value=round(row[name], 4),
            metric_name=f"{name}, {arm}, n = {row['n']}",
        )
        for arm, row in config.metadata.get("scores", {}).items()
        for name in (("loss",) if row["exact_match"] is None else ("exact_match", "f1"))
        if row.get(name) is not None
    ]  # fmt: skip


def _scored_on(config: AdapterConfig) -> str:
    return config.metadata.get("scored_on") or config.metadata.get("source") or "test split"


def _scores(config: AdapterConfig) -> list[str]:
    scores: dict[str, dict[str, Any]] = config.metadata.get("scores", {})
    if not scores:
        return []
    rows = [
        f"| {arm} | {_figure(row, 'exact_match')}{_interval(row)} | {_figure(row, 'f1')} | {_figure(row, 'loss')} | "
        f"{row['n']} |"
        for arm, row in scores.items()
    ]
    title = f"Test split of {_scored_on(config)}:"
    return [title, "", "| arm | exact match | F1 | loss, nats | n |", "|---|---|---|---|---|", *rows, "", _NOTE, ""]


def _figure(row: dict[str, Any], name: str) -> str:
    return "–" if row.get(name) is None else f"{row[name]:.3f}"


def _interval(row: dict[str, Any]) -> str:
    return "" if row.get("low") is None or row.get("high") is None else f" [{row['low']:.3f}, {row['high']:.3f}]"


def _code(config: AdapterConfig, location: str) -> list[str]:
    """Lines that send a message and answer with it; of the passages that the adapter's kind takes."""
    shared = config.settings.pooler is None
    told = shared or config.metadata.get("prompts", {}).get("share_question", True)
    sharer = "[]" if shared else '["Ada likes tea.", "Ben owns a lamp."]'
    question, own = (", question" if told else ""), ("" if shared else ', ["Cleo seeks a ruby."]')
    return [
        "from lcf_lightning import Channel", "",
        f'channel = Channel.from_pretrained({json.dumps(location)}{_modules(config)})',
        f'question = "{_QUESTION}"',
        f"message = channel.send({sharer}{question})",
        f"print(channel.receive(message, question{own}))",
    ]  # fmt: skip


def _modules(config: AdapterConfig) -> str:
    """What a loader must import first: the modules of parts that are not of the package."""
    paths = [split_name(part)[0] for part in (config.settings.pooler, config.settings.fuser) if part is not None]
    modules = [path.rpartition(".")[0] for path in paths if "." in path]
    return f", modules={modules}" if modules else ""


def _model(config: AdapterConfig, role: str) -> str:
    model = getattr(config, role)
    extras = [model.revision and f"revision {model.revision}", model.dtype, model.quantization]
    return f"{model.path} ({', '.join(extra for extra in extras if extra)})"
