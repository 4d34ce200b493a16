"""``--trainer.precision bf16-mixed`` in every command: the adapter's training alone is in another precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcf_lightning.cli import main
from tests.test_cli import QUICK, rows

MIXED = ["--trainer.precision", "bf16-mixed"]


@pytest.mark.slow
def test_every_command_takes_bf16_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What answers is computed as with 32-true, to the bit; and a validation finds what its callback finds."""
    run = tmp_path / "run"
    common = [*QUICK, "--trainer.default_root_dir", str(run)]
    main(["fit", *common, *MIXED, "--trainer.max_steps", "2"])
    said = {}
    for precision in (MIXED, []):
        for command in ("validate", "test", "predict"):
            main([command, *common, *precision])
        name = "mixed" if precision else "usual"
        figures = rows(run / "validate" / "metrics.csv")[-1]
        answers = (run / "predictions.jsonl").read_text()
        output = tmp_path / name
        arms = ["--arms", "[own_context,message,mismatched]", "--repeats", "0", "--output", str(output)]
        main(["evaluate", *common, *precision, *arms])
        evaluated = sorted((output / "predictions.jsonl").read_text().splitlines())
        main(
            ["prune", *common, *precision, "--keep", "2", "--limit", "4", "--output", str(tmp_path / f"{name}_pruned")]
        )
        main(["cache", *common, *precision, "--limit", "2", "--model.prefills.folder", str(tmp_path / f"{name}_kept")])
        capsys.readouterr()
        main(["params", "--json", *QUICK[:2], *precision])
        counted = json.loads(capsys.readouterr().out)
        timed = [key for key in figures if "speedup" in key]
        said[name] = ({key: figures[key] for key in figures if key not in timed}, answers, evaluated, counted)
        groups = [json.loads(line) for line in evaluated]
        assert {row["arm"] for row in groups} == {"own_context", "message", "mismatched"}
    assert said["mixed"] == said["usual"]
    found = {key: float(value) for key, value in said["mixed"][0].items() if value}
    losses = [found[key] for key in ("val/message/loss", "val/own_questions/message/loss") if key in found]
    assert min(losses) - 1e-6 <= found["val/loss"] <= max(losses) + 1e-6
