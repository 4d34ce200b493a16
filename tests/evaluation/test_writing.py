"""How fast the sharer writes, and on which cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lcf_lightning.evaluation.latency as latency
import lcf_lightning.evaluation.writing as writing
from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.arms import text_to_text
from lcf_lightning.evaluation.latency import measure
from lcf_lightning.evaluation.text_baseline import text_prompts, write_texts
from lcf_lightning.evaluation.writing import Spread, Writing
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from tests.pairs import small_data, small_module


@pytest.fixture
def module(spec: Callable[[str], ModelSpec]) -> LCFModule:
    module = small_module(spec("llama"), spec("qwen3"))
    module.configure_model()
    module.adapter.eval()
    return module


@pytest.fixture
def batches(spec: Callable[[str], ModelSpec]) -> list[Batch]:
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    return list(data.test_dataloader())[:2]


def test_the_writer_is_timed_beside_plain_generate(
    module: LCFModule, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, plain = [0.0], writing._plain

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*args: Any) -> Any:
            now[0] += seconds
            return call(*args)

        return slowly

    def write(link: Link, cache: KVCache, last: torch.Tensor, budget: int, size: int | None = None) -> torch.Tensor:
        now[0] += 1.0 if size else 2.0
        ids = write_texts(link, cache, last, budget, size)
        assert torch.equal(ids, plain(link, torch.cat([written["ids"], last], 1), budget))
        return ids[:, :3]  # as if it ended early

    written: dict[str, torch.Tensor] = {}
    read = module.link.read_sharer
    monkeypatch.setattr(module.link, "read_sharer", lambda tokens: written.update(ids=tokens.ids) or read(tokens))
    monkeypatch.setattr(writing, "write_texts", write)
    monkeypatch.setattr(writing, "_plain", taking(4.0, lambda *args: plain(*args)[:, :3]))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found = writing.measure_writing(module.link, module.writer, batches, 6, 200, repeats=3)
    assert found["cache"] == "static"  # the faster one here
    assert found["tokens_per_second"]["median"] == pytest.approx(3)
    assert found["to_generate"]["median"] == pytest.approx(4)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_texts_are_timed_on_the_faster_cache_of_one_size(
    module: LCFModule, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Whatever the text and the budget, so that nothing is compiled once the warm-up is over."""
    sizes: list[int | None] = []

    def write(link: Link, kept: KVCache, last: torch.Tensor, budget: int, size: int | None) -> torch.Tensor:
        sizes.append(size)
        return write_texts(link, kept, last, budget, size)

    speed = Spread(median=1.0, min=1.0, max=1.0)
    measured = Writing(budget=4, cache=cache, tokens_per_second=speed, to_generate=speed)
    monkeypatch.setattr(latency, "measure_writing", lambda *_: measured)
    monkeypatch.setattr(text_to_text, "write_texts", write)
    measure(module.link, module.writer, batches, ["t2t_2", "t2t_4"], max_new_tokens=2, repeats=2, warmup=1)
    prompts = [len(text_prompts(module.link, module.writer, b.prompts, b.examples)[0].ids[0]) for b in batches]
    assert len(sizes) == 6
    assert set(sizes) == ({max(prompts) + 1 + 4} if cache == "static" else {None})
