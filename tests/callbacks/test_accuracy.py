from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lcf_lightning.callbacks import CommunicationAccuracy

from lcf_lightning import ModelSpec
from lcf_lightning.errors import SettingError
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]


def validated(
    spec: Spec, folder: Path, callback: CommunicationAccuracy, precision: str = "32-true", **settings: float
) -> dict[str, float]:
    module = small_module(spec("llama"), spec("qwen3"), **settings)
    trainer = small_trainer(folder, callback, limit_val_batches=1.0, precision=precision)
    return dict(trainer.validate(module, datamodule=small_data(spec("llama"), spec("qwen3")), verbose=False)[0])


def test_every_arm_is_logged_for_both_kinds_of_questions(spec: Spec, tmp_path: Path) -> None:
    callback = CommunicationAccuracy(max_new_tokens=3)
    logged = validated(spec, tmp_path, callback)
    assert callback.summary is not None
    arms = ("own_context", "message", "mismatched")
    for group, prefix in (("arms", "val"), ("own_questions", "val/own_questions")):
        assert tuple(callback.summary[group]) == arms
        for arm, name in ((arm, name) for arm in arms for name in ("exact_match", "f1", "loss")):
            assert logged[f"{prefix}/{arm}/{name}"] == pytest.approx(callback.summary[group][arm][name], abs=1e-5)
    sizes = [callback.summary[group]["message"]["n"] for group in ("arms", "own_questions")]
    assert sum(sizes) == 12
    assert min(sizes) > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_message_arm_is_what_val_loss_measures(spec: Spec, tmp_path: Path, precision: str) -> None:
    callback = CommunicationAccuracy(max_new_tokens=3)
    logged = validated(spec, tmp_path, callback, precision)
    groups = [callback.summary[group]["message"] for group in ("arms", "own_questions")]
    mean = sum(figures["loss"] * figures["n"] for figures in groups) / sum(figures["n"] for figures in groups)
    assert logged["val/loss"] == pytest.approx(mean, abs=1e-6)
    assert logged["val/loss"] == validated(spec, tmp_path, CommunicationAccuracy(max_new_tokens=3))["val/loss"]


def test_closed_gates_give_every_arm_the_own_context_score(spec: Spec, tmp_path: Path) -> None:
    callback = CommunicationAccuracy(max_new_tokens=3)
    validated(spec, tmp_path, callback, gate_init=-1.0)
    for group in ("arms", "own_questions"):
        figures = callback.summary[group]
        assert figures["message"] == figures["mismatched"] == figures["own_context"]
    open_gates = CommunicationAccuracy(max_new_tokens=3)
    validated(spec, tmp_path, open_gates, gate_init=1.0)
    assert open_gates.summary["arms"]["message"]["loss"] != open_gates.summary["arms"]["own_context"]["loss"]


def test_a_validation_can_be_bounded_and_a_test_is_whole(spec: Spec, tmp_path: Path) -> None:
    callback = CommunicationAccuracy(arms=["message"], test_arms=["full_context"], max_new_tokens=2, max_batches=1)
    validated(spec, tmp_path, callback)
    assert sum(callback.summary[group]["message"]["n"] for group in ("arms", "own_questions")) == 5
    module = small_module(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, callback).test(module, datamodule=small_data(spec("llama"), spec("qwen3")), verbose=False)
    assert sum(callback.summary[group]["full_context"]["n"] for group in ("arms", "own_questions")) == 12


def test_evaluation_changes_no_random_number_of_training(spec: Spec, tmp_path: Path) -> None:
    """Validating in between must not change what is trained."""

    def trained(folder: Path, *callbacks: pl.Callback, **settings: float) -> dict[str, torch.Tensor]:
        module = small_module(spec("llama"), spec("qwen3"))
        data = small_data(spec("llama"), spec("qwen3"))
        small_trainer(folder, *callbacks, **settings).fit(module, datamodule=data)
        return module.adapter.state_dict()

    plain = trained(tmp_path)
    watched = trained(tmp_path, CommunicationAccuracy(max_new_tokens=2), limit_val_batches=1.0, val_check_interval=2)
    assert plain.keys() == watched.keys()
    assert all(torch.equal(tensor, watched[name]) for name, tensor in plain.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["telepathy"]}, r"arms=\['telepathy'\] must be one or more of sharer_alone, question_only"),
        ({"arms": ["t2t_0"]}, r"arms=\['t2t_0'\] must be one or more of"),
        ({"arms": ["message", "message"]}, "your own, each once"),
        ({"test_arms": []}, r"test_arms=\[\] must be one or more of"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_batches": 0}, "max_batches=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        CommunicationAccuracy(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
