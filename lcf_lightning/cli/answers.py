"""An evaluation's folder: answers that are written down by one process or several, and go on where they stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.predictions import keep, read_predictions
from lcf_lightning.files import LOCK_FILE, FolderLock, unfinished, write_text

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"
_PARTS = "predictions_*.jsonl"  # of each process but the first, until these are put together
_OWN = {PREDICTIONS, REPORT, "settings.json", "report.md", "arms.png", "frontier.png", LOCK_FILE}


def file_of(output: Path, rank: int) -> Path:
    """Where a process writes its answers, and no other does."""
    return output / (_PARTS.replace("*", str(rank)) if rank else PREDICTIONS)


@contextmanager
def answers_of(identity: dict[str, Any], output: Path, fabric: Fabric) -> Iterator[list[Prediction]]:
    """Have the output folder with the other processes of this evaluation; what it holds already of these answers."""
    if not fabric.is_global_zero:
        known: list[Prediction] = fabric.broadcast([])
        with FolderLock(output, "output", shared=True):
            yield known
        return
    _require_own(output)
    with FolderLock(output, "output") as lock:
        for left in unfinished(output, _OWN):
            left.unlink()
        _empty_unless_of(identity, lock)
        put_together([], output)
        lock.share()
        yield fabric.broadcast(read_predictions(output / PREDICTIONS))


def put_together(answers: Iterable[Prediction], output: Path) -> None:
    """Have the predictions file hold these answers, and those that processes have written beside it."""
    parts = sorted(output.glob(_PARTS))
    keep(output / PREDICTIONS, chain(*map(read_predictions, parts), answers))
    for part in parts:
        part.unlink()


def _require_own(output: Path) -> None:
    """Refuse a folder that holds anything but what an evaluation writes."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    left = {path.name for path in unfinished(output, _OWN)}
    foreign = sorted(names - _OWN - left - {part.name for part in output.glob(_PARTS)})
    if foreign:
        raise SettingError(f"output={str(output)!r} must be a folder of its own; it holds {', '.join(foreign)}.")


def _empty_unless_of(identity: dict[str, Any], lock: FolderLock) -> None:
    """Move aside what the output folder holds of another adapter or other settings, or of nobody knows which."""
    output, why = lock.folder, "of another adapter or other settings"
    file = output / "settings.json"
    try:
        found = json.loads(file.read_bytes().decode()) if file.is_file() else None
    except (ValueError, RecursionError):
        found, why = None, f"of settings that cannot be read any more ({file.name} is damaged)"
    if found != identity:
        aside = lock.move_aside((PREDICTIONS, REPORT, *(part.name for part in output.glob(_PARTS))))
        if aside is not None:
            sys.stderr.write(f"{output} held the evaluation {why}; moved to {aside}.\n")
        write_text(file, json.dumps(identity, indent=2) + "\n")
