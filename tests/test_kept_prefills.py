"""Kept prefills end to end: ``cache``, a fit on a warm store, and what may not use one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lcf_lightning import CacheAdapter
from lcf_lightning.cli import main
from tests.pairs import prefills_counted
from tests.test_cli import QUICK, rows

SMALL = [*QUICK, "--data.source.train_size", "24", "--trainer.limit_test_batches", "1"]


def fit(folder: Path, *extra: str) -> list[float]:
    """Two epochs of six steps; the loss of each step."""
    main(["fit", *SMALL, "--trainer.default_root_dir", str(folder), "--trainer.max_steps", "12", *extra])
    return [float(row["train/loss"]) for row in rows(folder / "metrics.csv") if row["train/loss"]]


def test_a_fit_on_a_warm_store_makes_no_prefill_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit(tmp_path / "plain")
    store = ["--model.prefills.folder", str(tmp_path / "store")]
    main(["cache", *SMALL, *store])
    (computed, kept), *_ = re.findall(
        r"(\d+) texts computed, (\d+) kept before; 0\.\d+ GB in all", capsys.readouterr().out
    )
    assert (int(computed), int(kept)) == (2 * (24 + 12), 0)
    main(["cache", *SMALL, *store])
    assert "0 texts computed, 72 kept before" in capsys.readouterr().out

    computed_in_fit: list[int] = prefills_counted(monkeypatch)
    monkeypatch.setattr("lcf_lightning.cli.run.LCFCLI.after_fit", lambda cli: None)  # a test reads other texts
    warm = fit(tmp_path / "warm", *store, "--trainer.limit_val_batches", "0")
    assert computed_in_fit == []
    assert warm == pytest.approx(plain, abs=1e-3)
    one, two = (CacheAdapter.from_pretrained(tmp_path / run / "adapter").state_dict() for run in ("plain", "warm"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_store_fills_as_a_fit_goes_and_validation_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prefills_counted(monkeypatch)
    store = ["--model.prefills.folder", str(tmp_path / "store"), "--model.prefills.dtype", "float16"]
    half = fit(tmp_path / "half", *store)
    assert sum(made) >= 2 * 24  # each text once, though there were two epochs and six validations
    before = len(made)
    again = fit(tmp_path / "again", *store)
    assert again == half
    assert len(made) == before
    assert half == pytest.approx(fit(tmp_path / "plain"), abs=1e-2)


def test_cache_needs_a_folder_and_good_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, message in (
        ([], "prefills=null must name a folder: --model.prefills.folder FOLDER"),
        (["--model.prefills.folder", str(tmp_path), "--model.prefills.max_gb", "0"], "max_gb=0.0 of prefills must be"),
        (
            ["--model.prefills.folder", str(tmp_path), "--model.prefills.max_gb", "0.0002"],
            "keeps no more: max_gb=0.0002",
        ),
        (["--model.prefills.folder", str(tmp_path), "--limit", "0"], "limit=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["cache", *SMALL, *extra])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
