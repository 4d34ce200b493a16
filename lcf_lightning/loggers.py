"""A CSV logger that continues an earlier file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger deletes an earlier ``metrics.csv`` when a run resumes; this one appends to it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of this run's file."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as stored:
                self.metrics_keys = next(csv.reader(stored), [])
