"""Processes that were started otherwise than a command was told."""

from __future__ import annotations

import pytest

from lcf_lightning.cli import main
from tests.distributed.launch import ROOT


@pytest.mark.parametrize("devices", ["1", "2"])
def test_devices_that_torchrun_has_not_started_are_named(
    devices: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.devices", devices])
    assert stopped.value.code == 2
    assert f"trainer.devices={devices} and trainer.num_nodes=1 must be what" in capsys.readouterr().err
