from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.config import AdapterConfig, AdapterSettings, ModelIdentity, last_aligned, proportional
from lcf_lightning.errors import AdapterFileError, GeometryError, SettingError
from lcf_lightning.models.geometry import KNOWN_GEOMETRIES, Geometry
from tests.adapter.conftest import RECEIVER, SHARER

Config = Callable[..., AdapterConfig]
QWEN25, QWEN3 = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("sharer", "settings", "total"),
    [
        (QWEN25, AdapterSettings(pooler=None, d=128), 19_393_528),
        (QWEN25, AdapterSettings(pooler=None, d=256), 53_409_272),
        (QWEN25, AdapterSettings(pooler=None, d=128, layers=(6, 8, 9, 10, 15, 16, 17, 19, 21)), 6_233_634),
        (QWEN3, AdapterSettings(pooler="span", d=128), 25_873_400),
        (QWEN25, AdapterSettings(pooler=None, fuser="c2c", d=1024), 477_848_056),
    ],
)
def test_parameter_counts_are_the_papers(sharer: str, settings: AdapterSettings, total: int) -> None:
    models = [ModelIdentity(name, None, KNOWN_GEOMETRIES[name]) for name in (sharer, QWEN3)]
    with torch.device("meta"):
        counts = CacheAdapter(AdapterConfig(*models, settings)).parameter_counts()
    assert counts["total"] == total
    assert counts["pool"] == (57_344 if settings.pooler else 0)
    layers = len(settings.layers or range(28))
    assert counts["per_layer"] * layers + counts["pool"] == total


def test_layer_maps() -> None:
    assert [last_aligned(layer, 3, 5) for layer in range(5)] == [0, 0, 0, 1, 2]
    assert [last_aligned(layer, 5, 3) for layer in range(3)] == [2, 3, 4]
    assert [proportional(layer, 3, 5) for layer in range(5)] == [0, 0, 1, 2, 2]
    assert proportional(0, 4, 1) == 0


def test_layers_and_what_they_read(config: Config) -> None:
    assert config().receiver_layers == (0, 1, 2, 3, 4)
    chosen = config(layers=(1, 4), layer_map="proportional")
    assert chosen.receiver_layers == (1, 4)
    assert chosen.sharer_layers == (0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d": 15}, "d=15 must be even and between 2 and 65536"),
        ({"d": 0}, "d=0 must be even and between 2 and 65536"),
        ({"fuser": "mlp"}, "fuser='mlp' must be c2c, lcf, or the class path of a Fuser whose module has been imported"),
        ({"pooler": "mean"}, "pooler='mean' must be carry, prefix, span, or the class path of a Pooler"),
        (
            {"pooler": {"class_path": "span", "init_args": {"slots": 2}}},
            "init_args of pooler='span' hold slots; it takes none",
        ),
        ({"pooler": {"class": "span"}}, "a part must be a name, or class_path and init_args; not {'class': 'span'}"),
        ({"layer_map": "first"}, "layer_map='first' must be one of last_aligned, proportional"),
        ({"gate_noise": "normal"}, "gate_noise='normal' must be one of logistic, gumbel, none"),
        ({"pooler": "prefix", "unrotate_keys": False}, "unrotate_keys=false must be true with pooler='prefix'"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"layers": (4, 5)}, r"layers=\[4, 5\] must be ascending, distinct and between 0 and 4"),
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": (1, 1)}, "distinct"),
        ({"layers": ()}, r"layers=\[\] must be"),
    ],
)
def test_bad_settings_are_named(config: Config, settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        config(**settings)
    assert "\n" not in str(caught.value)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(SettingError, match=r"d=3.*dropout=2"):
        AdapterSettings(d=3, dropout=2)


def test_a_config_survives_json(config: Config) -> None:
    import json

    original = config(layers=(0, 2), fuser="c2c", dropout=0.1)
    restored = AdapterConfig.from_dict(json.loads(json.dumps(original.to_dict())))
    assert restored == original
    assert restored.sharer == ModelIdentity("a/sharer", "main", SHARER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version=2 is unknown; this release reads version 1"),
        ({"format_version": None}, "format_version=None is unknown"),
        ({"colour": "red"}, r"unknown fields \['colour'\]"),
        ({"sharer": {"path": "a"}}, "cannot be understood"),
        ({"settings": {"d": 7}}, "d=7 must be even"),
        ({"settings": {"e": 8}}, r"adapter.settings has unknown fields \['e'\]"),
    ],
)
def test_foreign_configs_are_refused(config: Config, change: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterFileError, match=message):
        AdapterConfig.from_dict({**config().to_dict(), **change})
    with pytest.raises(AdapterFileError, match="is unknown"):
        AdapterConfig.from_dict([])  # type: ignore[arg-type]


def test_another_pair_is_refused_by_name(config: Config) -> None:
    config().require("sharer", SHARER)
    config().require("receiver", RECEIVER)
    with pytest.raises(GeometryError, match=r"sharer of this adapter \(a/sharer\): layers is 4, expected 3; head_dim"):
        config().require("sharer", Geometry(4, 2, 16))
    with pytest.raises(GeometryError, match=r"receiver of this adapter \(b/receiver\): kv_heads is 2, expected 3"):
        config().require("receiver", Geometry(5, 2, 4))


def test_a_model_is_the_same_as_far_as_its_weights_are_known() -> None:
    unknown, known = (
        ModelIdentity("a/model", None, SHARER),
        ModelIdentity("a/model", None, SHARER, fingerprint="1" * 32),
    )
    assert unknown.same(known)
    assert known.same(unknown)
    assert known.same(replace(known))
    assert not known.same(replace(known, fingerprint="2" * 32))
    assert not unknown.same(replace(known, dtype="bfloat16"))
