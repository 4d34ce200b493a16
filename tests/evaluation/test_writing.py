"""How fast the sharer writes, and on which cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lcf_lightning.evaluation.latency as latency
import lcf_lightning.evaluation.writing as writing
from lcf_lightning import LCFModule
from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.arms import text_to_text
from lcf_lightning.evaluation.latency import measure
from lcf_lightning.evaluation.text_baseline import text_prompts, write_at_once, write_texts
from lcf_lightning.evaluation.writing import Spread, Writing
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache


@pytest.mark.parametrize(("cache", "seconds"), [("static", 1.0), ("dynamic", 4.0)])
def test_the_faster_cache_is_found_beside_plain_generate(
    module: LCFModule, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, cache: str, seconds: float
) -> None:
    """Both write the same tokens; here with 1 and 2 seconds, or with 4 and 2."""
    now, wrote = [0.0], []

    def taking(seconds: float, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def slowly(*args: Any) -> torch.Tensor:
            now[0] += seconds
            wrote.append(call(*args))
            return wrote[-1][:, :3]  # as if it ended early

        return slowly

    monkeypatch.setattr(writing, "write_texts", taking(seconds, write_texts))
    monkeypatch.setattr(writing, "write_at_once", taking(2.0, write_at_once))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found = writing.measure_writing(module.link, module.writer, batches, 6, 200, repeats=3)
    assert found["cache"] == cache
    assert found["tokens_per_second"]["median"] == pytest.approx(3 if cache == "static" else 1.5)
    assert found["to_generate"]["median"] == pytest.approx(2 if cache == "static" else 1)
    assert len(wrote) == 2 * (1 + 3)
    assert all(torch.equal(one, other) for one, other in zip(wrote[::2], wrote[1::2], strict=True))


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_texts_are_timed_on_the_faster_cache_of_one_size(
    module: LCFModule, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Whatever the text and the budget, so that nothing is compiled once the warm-up is over."""
    sizes: list[int] = []

    def write(link: Link, kept: KVCache, last: torch.Tensor, budget: int, size: int) -> torch.Tensor:
        sizes.append(size)
        return write_texts(link, kept, last, budget, size)

    speed = Spread(median=1.0, min=1.0, max=1.0)
    measured = Writing(budget=4, cache=cache, tokens_per_second=speed, to_generate=speed)
    monkeypatch.setattr(latency, "measure_writing", lambda *_: measured)
    monkeypatch.setattr(text_to_text, "write_texts", write)
    measure(module.link, module.writer, batches, ["t2t_2", "t2t_4"], max_new_tokens=2, repeats=2, warmup=1)
    prompts = [len(text_prompts(module.link, module.writer, b.prompts, b.examples)[0].ids[0]) for b in batches]
    assert sizes == ([max(prompts) + 1 + 4] * 6 if cache == "static" else [])
