from __future__ import annotations

import errno
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lcf_lightning import ModelSpec
from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.models.cache import KVCache, prefill
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.models.store import PrefillSettings, PrefillStore, fingerprint
from tests.pairs import prefills_counted

Spec = Callable[[str], ModelSpec]
LENGTHS = (3, 7, 5)


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts of some lengths, padded on the left: ids and mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return torch.randint(2, 200, mask.shape, generator=generator) * mask, mask


def assert_same(found: KVCache, expected: KVCache, tolerance: float = 1e-5) -> None:
    """Equal wherever a token is real."""
    real = expected.mask[:, None, :, None]
    assert torch.equal(found.mask, expected.mask)
    for ours, theirs in zip(found.keys + found.values, expected.keys + expected.values, strict=True):
        torch.testing.assert_close(ours * real, theirs * real, atol=tolerance, rtol=tolerance)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def model(spec: Spec) -> FrozenModel:
    return load_frozen(spec("gemma3"))  # sliding windows: all tokens of all layers have to be kept


def test_what_was_read_once_is_not_computed_again(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prefill(model.model, *prompts())
    calls = prefills_counted(monkeypatch)
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    assert_same(store.read(*prompts()), expected)
    assert (calls, store.misses, len(files(tmp_path))) == ([3], 3, 3)
    again = PrefillStore(PrefillSettings(str(tmp_path)), model)
    ids, mask = prompts()
    assert_same(again.read(ids[[1, 0]], mask[[1, 0]]), expected.rows(torch.tensor([1, 0])))  # another batch
    assert_same(again.read(ids[:1, -3:], mask[:1, -3:]), prefill(model.model, ids[:1, -3:], mask[:1, -3:]))
    assert (calls[:1], again.hits, again.misses) == ([3], 3, 0)
    assert store.size == again.size == sum(path.stat().st_size for path in files(tmp_path))


def test_only_what_is_missing_is_computed(model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prefill(model.model, *prompts())
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    ids, mask = prompts()
    store.read(ids[1:2], mask[1:2])
    calls = prefills_counted(monkeypatch)
    assert_same(store.read(ids, mask), expected)
    assert calls == [2]
    assert (store.hits, store.misses) == (1, 3)


def test_another_model_dtype_or_config_finds_nothing(spec: Spec, model: FrozenModel, tmp_path: Path) -> None:
    other = load_frozen(spec("gemma3"))
    with torch.no_grad():
        other.model.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-3  # one weight of one layer
    other_config = load_frozen(spec("gemma3"))
    other_config.model.config.sliding_window = 5
    bfloat = load_frozen(ModelSpec(spec("gemma3").path, dtype="bfloat16"))
    twin = load_frozen(spec("gemma3"))
    models = [model, other, other_config, bfloat, load_frozen(spec("llama"))]
    assert len({fingerprint(each) for each in models}) == 5
    assert fingerprint(twin) == fingerprint(model)
    for count, each in enumerate(models, start=1):
        PrefillStore(PrefillSettings(str(tmp_path)), each).read(*prompts())
        assert len(files(tmp_path)) == 3 * count
    half = PrefillStore(PrefillSettings(str(tmp_path), "float16"), model)
    half.read(*prompts())
    assert half.misses == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_takes_half_the_bytes_and_is_rounded_from_the_start(
    model: FrozenModel, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    store = PrefillStore(PrefillSettings(str(tmp_path / dtype), dtype), model)
    first, second = store.read(*prompts()), store.read(*prompts())
    assert all(torch.equal(one, other) for one, other in zip(first.keys, second.keys, strict=True))
    assert first.keys[0].dtype == torch.float32
    assert_same(first, prefill(model.model, *prompts()), tolerance)
    geometry = model.geometry
    tensors = [2 * geometry.layers * geometry.width * length * 2 for length in LENGTHS]
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) - sum(tensors) < 3 * 400  # headers


@pytest.mark.parametrize("quantization", ["8bit", "nf4"])
def test_quantised_models_keep_theirs_apart(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    for each in (ModelSpec("tiny-sharer"), ModelSpec("tiny-sharer", quantization=quantization)):
        model = load_frozen(each)
        ids, mask = prompts()
        store = PrefillStore(PrefillSettings(str(tmp_path)), model)
        for _ in range(2):
            found, expected = store.read(ids % 90, mask), prefill(model.model, ids % 90, mask)
            assert found.keys[0].dtype == expected.keys[0].dtype
            assert_same(found, expected)
        assert (store.hits, store.misses) == (3, 3)
    assert len(files(tmp_path)) == 6


def test_a_folder_that_may_only_be_read_is_read(
    model: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    expected = store.read(*prompts())

    def refused(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("lcf_lightning.models.store.os.utime", refused)
    assert_same(store.read(*prompts()), expected)
    assert store.hits == 3
    assert not [warning for warning in recwarn if "damaged" in str(warning.message)]


def test_files_can_be_read_by_whom_the_umask_lets(model: FrozenModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        PrefillStore(PrefillSettings(str(tmp_path)), model).read(*prompts())
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files(tmp_path)} == {0o640}


def test_what_was_unused_for_longest_gives_way(model: FrozenModel, tmp_path: Path) -> None:
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    for seed in range(4):
        store.read(*prompts(seed, (9,)))
    size = store.size // 4
    order = sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate(order):
        os.utime(path, (1_000 + age, 1_000 + age))
    limited = PrefillStore(PrefillSettings(str(tmp_path), max_gb=5.2 * size / 1e9), model)
    limited.read(*prompts(0, (9,)))  # used: it stays
    for seed in (10, 11, 12):
        limited.read(*prompts(seed, (9,)))
    left = set(files(tmp_path))
    assert order[0] in left
    assert order[1] not in left
    assert sum(path.stat().st_size for path in left) <= limited.limit
    limited.read(*prompts(12, (9,)))
    assert limited.hits == 2


def test_several_stores_keep_to_one_limit(model: FrozenModel, tmp_path: Path) -> None:
    """As of several ranks, or of two models."""
    one = PrefillStore(PrefillSettings(str(tmp_path / "one")), model)
    one.read(*prompts(0, (9,)))
    limit = 10.5 * one.size
    settings = PrefillSettings(str(tmp_path / "store"), max_gb=limit / 1e9)
    stores = [PrefillStore(settings, model) for _ in range(4)]
    with pytest.warns(UserWarning, match="is full"):
        _ = [stores[seed % 4].read(*prompts(seed, (9,))) for seed in range(40)]
    assert sum(path.stat().st_size for path in files(tmp_path / "store")) <= limit
    assert len(files(tmp_path / "store")) == 10


def test_a_prefill_has_the_dtype_of_its_model_whatever_surrounds_it(model: FrozenModel, tmp_path: Path) -> None:
    """As in a fit in mixed precision: what is kept must not depend on it."""
    expected = prefill(model.model, *prompts())
    with torch.autocast("cpu", torch.bfloat16):
        kept = PrefillStore(PrefillSettings(str(tmp_path)), model).read(*prompts())
    assert kept.keys[0].dtype == torch.float32
    assert_same(kept, expected)


def test_a_full_store_keeps_what_it_has_and_says_so_once(model: FrozenModel, tmp_path: Path) -> None:
    """Throwing out texts of this epoch for others of this epoch would leave nothing for the next."""
    one = PrefillStore(PrefillSettings(str(tmp_path / "one")), model)
    one.read(*prompts(0, (9,)))
    store = PrefillStore(PrefillSettings(str(tmp_path / "store"), max_gb=2.5 * one.size / 1e9), model)
    with pytest.warns(UserWarning, match=r"prefills.folder='.*store' is full \(max_gb=.*\) of texts in use") as warned:
        caches = [store.read(*prompts(seed, (9,))) for seed in range(5)]
    assert len([warning for warning in warned if "prefills.folder" in str(warning.message)]) == 1
    assert len(files(tmp_path / "store")) == 2
    for seed, cache in enumerate(caches):
        assert_same(cache, prefill(model.model, *prompts(seed, (9,))))
        store.read(*prompts(seed, (9,)))
    assert (store.hits, store.misses) == (2, 8)


def test_a_folder_that_cannot_be_written_only_warns(model: FrozenModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = PrefillStore(PrefillSettings(str(tmp_path / "file" / "store")), model)
    with pytest.warns(UserWarning, match="cannot be written") as warned:
        caches = [store.read(*prompts()) for _ in range(2)]
    for cache in caches:
        assert_same(cache, prefill(model.model, *prompts()))
    assert len([warning for warning in warned if "prefills.folder" in str(warning.message)]) == 1
    assert store.misses == 6


def write(folder: str, path: str, seed: int, rounds: int) -> None:
    torch.set_num_threads(1)
    store = PrefillStore(PrefillSettings(folder), load_frozen(ModelSpec(path)))
    for step in range(rounds):
        store.read(*prompts((seed + step) % rounds))


@pytest.mark.slow
def test_many_writers_share_a_folder(spec: Spec, tmp_path: Path) -> None:
    """Three processes write and read the same texts in different orders; one of them is killed."""
    start = multiprocessing.get_context("spawn").Process
    writers = [start(target=write, args=(str(tmp_path), spec("llama").path, seed, 40)) for seed in (0, 13, 26)]
    for writer in writers:
        writer.start()
    while not files(tmp_path) and writers[2].is_alive():
        time.sleep(0.001)
    writers[2].kill()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers[:2]] == [0, 0]
    whole = [path for path in files(tmp_path) if not path.name.startswith(".")]
    assert len(whole) == 120
    store = PrefillStore(PrefillSettings(str(tmp_path)), load_frozen(spec("llama")))
    for seed in range(40):
        assert_same(store.read(*prompts(seed)), prefill(store.model.model, *prompts(seed)))
    assert (store.hits, store.misses) == (120, 0)
    with safe_open(whole[0], framework="pt") as stored:
        assert set(stored.keys()) == {"keys", "values"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' of prefills"),
        ({"max_gb": 0.0}, "max_gb=0.0 of"),
        ({"max_gb": math.inf}, "max_gb=inf of"),
        ({"max_gb": math.nan}, "max_gb=nan of"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PrefillSettings("store", **settings)
    assert PrefillSettings("store").dtype is None


def test_right_padding_is_refused(model: FrozenModel, tmp_path: Path) -> None:
    ids, mask = prompts()
    store = PrefillStore(PrefillSettings(str(tmp_path)), model)
    with pytest.raises(GeometryError, match="padded on the left"):
        store.read(ids.flip(1), mask.flip(1))
    assert files(tmp_path) == []
