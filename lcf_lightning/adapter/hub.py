"""Adapters on the Hugging Face hub, and the card that travels with each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download

from lcf_lightning.adapter.config import AdapterConfig
from lcf_lightning.adapter.parts import split_name
from lcf_lightning.errors import AdapterFileError, reason

CARD_FILE = "README.md"


def is_hub_id(location: str) -> bool:
    """Whether ``location`` can be a repository ``owner/name``, and is no path that exists here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", location) is not None and not Path(location).exists()


def fetch(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Download an adapter's files, or find them in the cache.

    Raises:
        AdapterFileError: If the repository, or one of the files, cannot be fetched.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # all of the hub's are one or the other
        raise AdapterFileError(
            f"adapter={repository!r} is no folder here, and cannot be fetched from the hub: {reason(error)}"
        ) from error


def upload(folder: Path, repository: str, private: bool) -> str:
    """Make the repository where there is none, and upload an adapter folder; returns the commit's address."""
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload lcf_lightning adapter"))


def card(config: AdapterConfig, parameters: int, size: int) -> str:
    """The model card: what the adapter is for, how it was trained, and what it scored where that is known.

    Args:
        config: The adapter's config; ``metadata`` may hold ``source``, ``steps``, ``seed`` and ``scores``.
        parameters: Number of parameters.
        size: Bytes of the weights file.
    """
    trained, settings = config.metadata, config.settings
    kind = settings.label
    facts = {
        "Method": f"{kind}, d = {settings.d}",
        "Sharer": _model(config, "sharer"),
        "Receiver": _model(config, "receiver"),
        "Receiver layers": f"{len(config.receiver_layers)} of {config.receiver.geometry.layers}",
        "Parameters": f"{parameters:,}",
        "Size": f"{size / 1e6:.2f} MB",
        "Data": trained.get("source", "not recorded"),
        "Steps": trained.get("steps", "not recorded"),
        "Seed": trained.get("seed", "not recorded"),
    }
    data = ModelCardData(library_name="lcf_lightning", tags=["latent-cache-flow", "kv-cache"])
    lines = [
        "---", data.to_yaml(), "---", "",
        f"# {kind} adapter", "",
        "Lets one frozen language model talk to another through KV caches (Latent Cache Flow, arXiv 2605.22863).", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), "",
        *_scores(trained.get("scores", {})),
        "```python", "from lcf_lightning import Channel", "",
        f'channel = Channel.from_pretrained("…"{_modules(config)})  # this folder, or its id on the hub', "```", "",
    ]  # fmt: skip
    return str(ModelCard("\n".join(lines)))


def _modules(config: AdapterConfig) -> str:
    """What a loader must import first: the modules of parts that are not of the package."""
    paths = [split_name(part)[0] for part in (config.settings.pooler, config.settings.fuser) if part is not None]
    modules = [path.rpartition(".")[0] for path in paths if "." in path]
    return f", modules={modules}" if modules else ""


def _model(config: AdapterConfig, role: str) -> str:
    model = getattr(config, role)
    extras = [model.revision and f"revision {model.revision}", model.dtype, model.quantization]
    return f"{model.path} ({', '.join(extra for extra in extras if extra)})"


def _scores(arms: dict[str, dict[str, Any]]) -> list[str]:
    scored = {arm: row for arm, row in arms.items() if row["exact_match"] is not None}  # chats are not
    if not scored:
        return []
    rows = [f"| {arm} | {row['exact_match']:.3f} | {row['n']} |" for arm, row in scored.items()]
    return ["| arm, test split, before any change of dtype | exact match | n |", "|---|---|---|", *rows, ""]
