"""A CSV logger that continues an earlier file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger deletes ``metrics.csv`` when a run resumes; this one keeps its rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            rows: list[dict[str, Any]] = []
            if file.is_file():
                with file.open(newline="") as stored:
                    rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(stored)]
            writer = super().experiment
            writer.metrics = rows
        return self._experiment
