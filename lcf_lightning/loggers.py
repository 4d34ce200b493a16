"""A CSV logger that continues an earlier file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lcf_lightning.files import write_text


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger deletes an earlier ``metrics.csv`` when a run resumes; this one appends to it.

    Every row is on disk as soon as it is logged, so a run that is killed has lost none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"flush_logs_every_n_steps": 1, **kwargs})

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of this run's file."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment

    def rows(self) -> int:
        """Rows on disk; on rank 0, which alone writes them."""
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        return max(0, file.read_bytes().count(b"\n") - 1) if file.is_file() else 0

    @rank_zero_only
    def forget_after(self, rows: int) -> None:
        """Keep the first ``rows`` rows: a resumed run logs the others again."""
        self.experiment.rewrite(rows)


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as stored:
                self.metrics_keys = next(csv.reader(stored), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite()

    def rewrite(self, count: int | None = None) -> None:
        """Write the file anew with all columns known by now, and its first ``count`` rows or all."""
        file = Path(self.metrics_file_path)
        if file.is_file():
            text = file.read_bytes().decode()
            whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
            rows = list(csv.DictReader(io.StringIO(whole, newline="")))
            write_text(file, _table(self.metrics_keys, rows[:count]))


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether loggers are given what is logged in this step of training; elsewhere Lightning forgets it.

    To log a number takes Lightning a millisecond, which is much where models are small.
    """
    connector = trainer._logger_connector
    return connector.should_update_logs or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _table(columns: list[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
