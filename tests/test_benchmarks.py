"""What the benchmarks have in common; their commands: tests/test_docs.py."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EMBEDDED = Path(__file__).parents[1] / "benchmarks" / "embedded.py"


@pytest.fixture(scope="module")
def embedded() -> dict[str, Any]:
    return runpy.run_path(str(EMBEDDED))


def test_what_was_measured_is_not_measured_again(embedded: dict[str, Any], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def measure(one: int, two: int) -> dict[str, int]:
        calls.append((one, two))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"sum": one + two}

    file = tmp_path / "results" / "run.json"
    with pytest.raises(KeyboardInterrupt):
        embedded["kept"](file, measure, 1, 2)
    assert not file.exists()
    assert embedded["kept"](file, measure, 1, 2) == embedded["kept"](file, measure, 1, 2) == {"sum": 3}
    assert (calls, json.loads(file.read_text())) == ([(1, 2)] * 2, {"sum": 3})


def test_only_a_whole_adapter_is_not_trained_again(
    embedded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(embedded["subprocess"], "run", lambda command, **_: started.append(command))
    (tmp_path / "adapter").mkdir()  # a fit that was killed as it wrote
    assert embedded["trained"](tmp_path, "quickstart", 7, 5, ["--x", "1"]) == tmp_path / "adapter"
    assert started[0][-2:] == ["--x", "1"]
    assert started[0][started[0].index("--seed_everything") + 1] == "7"
    (tmp_path / "adapter" / "adapter_config.json").touch()
    embedded["trained"](tmp_path, "quickstart", 7, 5, [])
    assert len(started) == 1


def test_the_interval_over_seeds_knows_how_far_they_are_apart(embedded: dict[str, Any]) -> None:
    alike, apart = ([[1] * right + [0] * (200 - right) for right in rights] for rights in ((100,) * 3, (60, 100, 140)))
    one, three, wide = (embedded["over_seeds"](runs) for runs in (alike[:1], alike, apart))
    assert one["value"] == three["value"] == wide["value"] == 0.5
    deviation = np.sqrt(0.25 / 200)
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert three["high"] - three["low"] == pytest.approx(2 * 1.96 * deviation / np.sqrt(3), rel=0.1)
    assert wide["low"] < 0.35 < 0.65 < wide["high"]
