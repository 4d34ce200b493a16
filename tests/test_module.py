from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.adapter.fusers.lcf import LCFFuser
from lcf_lightning.errors import AdapterFileError, DivergedError, GeometryError, ModelError, SettingError
from lcf_lightning.models.continuation import Continuation, Likelihood
from tests.pairs import small_data, small_module, small_trainer

Spec = Callable[[str], ModelSpec]
PAIRS = [("llama", "qwen3"), ("gemma3", "llama"), ("llama", "gemma3"), ("qwen3", "qwen2")]


@pytest.mark.parametrize(("sharer", "receiver"), PAIRS)
@pytest.mark.parametrize(
    "settings", [{}, {"unrotate_keys": False}, {"fuser": "c2c", "layer_map": "proportional"}, {"pooler": "prefix"}]
)
def test_training_changes_the_adapter_and_nothing_else(
    spec: Spec, tmp_path: Path, sharer: str, receiver: str, settings: dict[str, Any]
) -> None:
    """Five steps; different tokenizers, head sizes, depths, sliding windows on either side."""
    module = small_module(spec(sharer), spec(receiver), **settings)
    module.configure_model()
    frozen = [module.link.sharer.model, module.link.receiver.model]
    before = [copy.deepcopy(model.state_dict()) for model in frozen]
    adapter = copy.deepcopy(module.adapter.state_dict())
    small_trainer(tmp_path, max_steps=5).fit(module, datamodule=small_data(spec(sharer), spec(receiver)))
    for model, weights in zip(frozen, before, strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())
    unchanged = [name for name, tensor in module.adapter.state_dict().items() if torch.equal(tensor, adapter[name])]
    assert unchanged == []


@pytest.mark.parametrize("pooler", ["span", "prefix", "carry"])
def test_mixed_precision_is_how_the_adapter_computes(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooler: str
) -> None:
    """Its parameters stay float32; that frozen models keep their dtype: tests/models/test_cache.py."""
    seen: list[torch.dtype] = []
    pair, delta = (spec("llama"), spec("qwen3")), LCFFuser.forward

    def fused(fuser: LCFFuser, *caches: Any) -> Any:
        found = delta(fuser, *caches)
        seen.extend(tensor.dtype for tensor in found)
        return found

    monkeypatch.setattr(LCFFuser, "forward", fused)
    adapters = []
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        module = small_module(*pair, pooler=pooler)
        small_trainer(tmp_path, precision=precision).fit(module, datamodule=small_data(*pair))
        assert set(seen) == {dtype}
        seen.clear()
        adapters.append(module.adapter.state_dict())
    assert {tensor.dtype for tensor in adapters[1].values()} == {torch.float32}
    assert any(not torch.equal(tensor, adapters[0][name]) for name, tensor in adapters[1].items())


def test_float16_is_refused(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; on a CPU Lightning takes bf16-mixed for it, and says so."""
    module = small_module(spec("llama"), spec("qwen3"))
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(module.trainer), "precision", "16-mixed")
    with pytest.raises(SettingError, match="precision='16-mixed' must be one of 32-true, bf16-mixed"):
        module.setup("fit")


def test_only_the_adapter_is_in_state_dict_optimizer_and_checkpoint(spec: Spec, tmp_path: Path) -> None:
    module = small_module(spec("llama"), spec("qwen3"))
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    trainer = small_trainer(tmp_path, keeper)
    trainer.fit(module, datamodule=small_data(spec("llama"), spec("qwen3")))
    names = {f"adapter.{name}" for name in module.adapter.state_dict()}
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)  # nothing in it needs unpickling
    assert set(module.state_dict()) == set(checkpoint["state_dict"]) == names
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.adapter.parameters()}
    stored, own = checkpoint["adapter_config"], module.adapter.config.to_dict()
    assert {**stored, "metadata": {}} == own
    assert stored["metadata"]["prompts"]["question"] == " {question}"  # a checkpoint can be exported as it is
    assert (tmp_path / "last.ckpt").stat().st_size < 6 * 4 * sum(p.numel() for p in module.adapter.parameters())


def test_a_step_reads_and_fuses_once(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    calls: list[str] = []

    def counted(name: str, call: Any) -> Any:
        def count(*args: Any) -> Any:
            calls.append(name)
            return call(*args)

        return count

    stages = ("read_sharer", "pool", "read_receiver", "fuse", "continuation")
    for name in stages:
        monkeypatch.setattr(module.link, name, counted(name, getattr(module.link, name)))
    small_trainer(tmp_path, max_steps=2).fit(module, datamodule=small_data(spec("llama"), spec("qwen3")))
    assert sorted(calls) == sorted(stages * 2)
    assert calls[-1] == "continuation"


class StopAt(pl.Callback):
    """Interrupts a run as a power cut would, after the checkpoint of that step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


STOPS = [(stop, workers) for stop in (3, 8, 13) for workers in (0, 2)]  # within an epoch, at its end, in the second
OFTEN = ((8, 2), (13, 0))


@pytest.mark.parametrize(
    ("stop_at", "num_workers"),
    [pytest.param(*stop, marks=() if stop in OFTEN else pytest.mark.slow) for stop in STOPS],
)
def test_an_interrupted_run_ends_with_the_same_adapter(
    spec: Spec, tmp_path: Path, stop_at: int, num_workers: int
) -> None:
    """Same data order, gate noise, dropout, optimizer and schedule: equal to the bit."""
    pair = spec("llama"), spec("qwen3")

    def run(folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> LCFModule:
        module = small_module(*pair)
        keeper = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True)
        data = small_data(*pair, batch_size=8, num_workers=num_workers)
        trainer = small_trainer(folder, *callbacks, keeper, max_steps=16)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module

    undisturbed = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", StopAt(stop_at + 1))
    resumed = run(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    for (name, ours), theirs in zip(
        resumed.adapter.state_dict().items(), undisturbed.adapter.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert resumed.trainer.global_step == undisturbed.trainer.global_step == 16


def test_gate_temperature_spans_the_run_and_warmup_precedes_decay(spec: Spec, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            seen.append((pl_module.temperature, trainer.optimizers[0].param_groups[0]["lr"]))

    module = small_module(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, Watch(), max_steps=11).fit(module, datamodule=small_data(spec("llama"), spec("qwen3")))
    temperatures, rates = zip(*seen, strict=True)
    assert temperatures[0] == pytest.approx(1.0)
    assert temperatures[5] == pytest.approx(0.1**0.5)  # exponential: the geometric mean half-way
    assert temperatures[-1] == pytest.approx(0.1)
    assert rates[0] < rates[1] < rates[2] == pytest.approx(1e-4)  # two steps of warm-up
    assert list(rates[2:]) == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.2e-4


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(spec: Spec, tmp_path: Path) -> None:
    module, data = small_module(spec("llama"), spec("qwen3")), small_data(spec("llama"), spec("qwen3"))
    with torch.no_grad():
        module.adapter.fuser.down.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"loss=nan at step 0, on the batch of ids \['world/42/train/\d+', "):
        small_trainer(tmp_path).fit(module, datamodule=data)
    assert module.trainer.global_step == 0


def test_a_receiver_that_lets_no_gradient_through_is_refused(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a fit would end normally, with an adapter as untrained as before."""
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    unheard = lambda _, ids: Likelihood(torch.ones(ids.shape, requires_grad=True), ids > 0)  # noqa: E731
    monkeypatch.setattr(Continuation, "likelihood", unheard)
    with pytest.raises(
        ModelError, match=r"no gradient reaches 19 tensors of the adapter, .* through the receiver '.*qwen3'"
    ):
        small_trainer(tmp_path).fit(module, datamodule=small_data(spec("llama"), spec("qwen3")))
    assert module.trainer.global_step == 0


def test_the_same_seed_gives_the_same_adapter(spec: Spec) -> None:
    pair = spec("llama"), spec("qwen3")
    first, second = small_module(*pair), small_module(*pair)
    other = LCFModule(*pair, first.adapter.config.settings, seed=43)
    assert torch.equal(first.adapter.fuser.down.weight, second.adapter.fuser.down.weight)
    assert not torch.equal(first.adapter.fuser.down.weight, other.adapter.fuser.down.weight)
    state = torch.get_rng_state()
    small_module(*pair)
    assert torch.equal(state, torch.get_rng_state())  # building draws nothing from the caller's random numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ({"temperature_end": 0.0}, "temperature_end=0.0 must be above 0 and at most temperature_start=1.0"),
        ({"temperature_end": 2.0}, "temperature_end=2.0 must be"),
    ],
)
def test_bad_settings_are_named_before_any_model_is_looked_for(settings: dict[str, float], message: str) -> None:
    nowhere = ModelSpec("/no/such/model")
    with pytest.raises(SettingError, match=message):
        LCFModule(nowhere, nowhere, **settings)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="path='/no/such/model'"):
        LCFModule(nowhere, nowhere)


def test_the_channel_exists_once_models_are_loaded(spec: Spec) -> None:
    module = small_module(spec("llama"), spec("llama"))
    with pytest.raises(SettingError, match="frozen models are not loaded yet; call configure_model"):
        _ = module.link
    module.configure_model()
    assert module.link.sharer is module.link.receiver  # one model on both sides is loaded once
    assert module.link.adapter is module.adapter


def test_a_model_of_another_geometry_is_refused(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built-in geometry that does not hold for the weights found must not train."""
    from lcf_lightning.models import loading
    from lcf_lightning.models.geometry import Geometry

    monkeypatch.setitem(loading.KNOWN_GEOMETRIES, spec("llama").path, Geometry(9, 2, 8))
    module = small_module(spec("llama"), spec("qwen3"))
    with pytest.raises(GeometryError, match="sharer of this adapter .*: layers is 3, expected 9"):
        module.configure_model()
    assert module._link is None


def test_a_checkpoint_of_another_adapter_is_refused(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    data = small_data(*pair)
    small_trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True)).fit(small_module(*pair), datamodule=data)
    for other in (small_module(*pair, d=16), small_module(spec("llama"), spec("gemma3"))):
        with pytest.raises(AdapterFileError, match="checkpoint belongs to another adapter: .* differ"):
            small_trainer(tmp_path, max_steps=8).fit(other, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["state_dict"].pop("adapter.gates.logits")
    torch.save(checkpoint, tmp_path / "short.ckpt")
    with pytest.raises(AdapterFileError, match="does not hold exactly the adapter's tensors"):
        small_trainer(tmp_path, max_steps=8).fit(
            small_module(*pair), datamodule=data, ckpt_path=tmp_path / "short.ckpt"
        )


def test_optimizer_comes_from_the_caller(spec: Spec, tmp_path: Path) -> None:
    pair = spec("llama"), spec("qwen3")
    module = LCFModule(*pair, small_module(*pair).adapter.config.settings, lambda p: torch.optim.SGD(p, lr=0.5))
    trainer = small_trainer(tmp_path)
    trainer.fit(module, datamodule=small_data(*pair))
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert trainer.optimizers[0].defaults["lr"] == 0.5


def test_a_checkpoint_knows_the_weights_of_its_models(spec: Spec, tmp_path: Path) -> None:
    module = small_module(spec("llama"), spec("qwen3"))
    small_trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True)).fit(
        module, datamodule=small_data(spec("llama"), spec("qwen3"))
    )
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored["adapter_config"]["sharer"]["fingerprint"] == module.link.sharer.fingerprint
    again = small_module(spec("llama"), spec("qwen3"))
    again.on_load_checkpoint(stored)  # before any weight is loaded
    again.configure_model()
    again.on_load_checkpoint(stored)
    stored["adapter_config"]["receiver"]["fingerprint"] = "0" * 32
    with pytest.raises(AdapterFileError, match="checkpoint belongs to another adapter: receiver differ"):
        again.on_load_checkpoint(stored)
