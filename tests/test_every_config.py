"""Every shipped config runs from a clone that has nothing beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
import yaml

from lcf_lightning.cli import main
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry
from tests.pages import ROOT, STAND_INS
from tests.stand_ins import load_dataset, write_models

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs, and small models at the ids that they name."""
    folder = write_models(tmp_path_factory.mktemp("alone") / "clone")
    shutil.copytree(ROOT / "configs", folder / "configs")
    assert [path.name for path in folder.parent.iterdir()] == ["clone"]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_trains_a_step_with_nothing_beside_its_clone(
    config: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda location: ["all"])
    for name in STAND_INS:
        monkeypatch.setitem(KNOWN_GEOMETRIES, name, Geometry(layers=3, kv_heads=2, head_dim=8))
    main([
        "fit", "--config", f"configs/{config}", "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--data.batch_size", "2", "--data.eval_batch_size", "2",
        "--data.num_workers", "0", "--model.max_new_tokens", "2",
    ])  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_no_config_names_a_file_that_a_clone_lacks(config: str) -> None:
    def texts(value: object) -> list[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [value] if isinstance(value, str) else [text for each in inner for text in texts(each)]

    named = [text for text in texts(yaml.safe_load((ROOT / "configs" / config).read_text())) if "json" in text]
    assert all((ROOT / text).is_file() for text in named)
