"""Adapters on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from lcf_lightning.errors import AdapterFileError, reason


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
            f"adapter={repository!r} is no folder here, and cannot be fetched from the hub: {_refusal(error)}"
        ) from error


def _refusal(error: Exception) -> str:
    """Why nothing came from the hub, which says what is wrong on the line below its status."""
    lines = [line for line in str(error).splitlines() if line]
    return " ".join(lines[:2]) if isinstance(error, HfHubHTTPError) else reason(error)


def upload(folder: Path, repository: str, private: bool) -> str:
    """Make the repository where there is none, and upload an adapter folder; returns the commit's address."""
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload lcf_lightning adapter"))
