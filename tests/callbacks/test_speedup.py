from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lcf_lightning.callbacks.speedup as speedup
import pytest
from lcf_lightning.callbacks import Speedup
from lightning.pytorch.demos.boring_classes import BoringModel

from lcf_lightning import ModelSpec
from lcf_lightning.errors import SettingError
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


def test_the_ratio_is_logged_by_validation_and_test(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    callback = Speedup(budgets=[8, 32], repeats=3)
    trainer = small_trainer(tmp_path, callback, limit_val_batches=1.0)
    for run in (trainer.validate, trainer.test):
        (logged,) = run(small_module(*pair), datamodule=small_data(*pair), verbose=False)
        ratios = {name: value for name, value in logged.items() if name.startswith("speedup/")}
        assert set(ratios) == {"speedup/ttft_vs_t2t_8", "speedup/ttft_vs_t2t_32"}
        assert ratios == pytest.approx(callback.ratios)
        assert ratios["speedup/ttft_vs_t2t_32"] > ratios["speedup/ttft_vs_t2t_8"] > 0
        assert ratios["speedup/ttft_vs_t2t_32"] > 1


def test_single_examples_of_the_first_batch_are_timed(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    plain = speedup.measure

    def listened(link: Any, writer: Any, batches: Any, *args: Any) -> Any:
        seen.update(ids=[batch.ids for batch in batches], args=args)
        return plain(link, writer, batches, *args)

    monkeypatch.setattr(speedup, "measure", listened)
    pair = spec("llama"), spec("qwen3")
    data = small_data(*pair)
    small_trainer(tmp_path, Speedup([2], repeats=3, warmup=2), limit_val_batches=1.0).validate(
        small_module(*pair), datamodule=data, verbose=False
    )
    first = next(iter(data.val_dataloader()))
    assert seen["ids"] == [[id] for id in first.ids[:3]]
    assert seen["args"] == (["t2t_2"], 16, 3, 2, None)


def test_the_faster_way_to_write_is_found_once(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    plain = speedup.measure
    monkeypatch.setattr(speedup, "measure", lambda *args: found.append(args[-1]) or plain(*args))
    pair, callback = (spec("llama"), spec("qwen3")), Speedup([2], repeats=1, warmup=0)
    trainer = small_trainer(tmp_path, callback, limit_val_batches=1, val_check_interval=2)
    trainer.fit(small_module(*pair), datamodule=small_data(*pair))
    assert found[0] is None
    assert len(found) == 2
    assert isinstance(found[1], bool)


def test_the_sanity_check_is_not_timed(spec: Spec, tmp_path: Path) -> None:
    callback = Speedup([2], repeats=1)
    pair = spec("llama"), spec("qwen3")
    settings = {"limit_val_batches": 2, "num_sanity_val_steps": 1, "max_steps": 1, "val_check_interval": 4}
    small_trainer(tmp_path, callback, **settings).fit(small_module(*pair), datamodule=small_data(*pair))
    assert callback.ratios == {}
    small_trainer(tmp_path, callback, **{**settings, "max_steps": 4}).fit(
        small_module(*pair), datamodule=small_data(*pair)
    )
    assert callback.ratios["speedup/ttft_vs_t2t_2"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": []}, r"budgets=\[\] must be one or more numbers of tokens"),
        ({"budgets": [50, 0]}, r"budgets=\[50, 0\] must be one or more"),
        ({"repeats": 0}, "repeats=0 and warmup=1 must be at least 1 and 0"),
        ({"warmup": -1}, "repeats=5 and warmup=-1 must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Speedup(**settings)
    assert "\n" not in str(caught.value)


def test_another_module_is_refused() -> None:
    with pytest.raises(SettingError, match="Speedup needs an LCFModule, not a BoringModel"):
        Speedup()._measure(BoringModel(), None)  # type: ignore[arg-type]
    assert Speedup().ratios == {}
