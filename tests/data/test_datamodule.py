from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lcf_lightning import ModelSpec
from lcf_lightning.data.batch import Batch, Collator
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.sources import World
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.host import Extent
from lcf_lightning.models.spec import load_tokenizer
from tests.data.conftest import SIZES, Listed, Make, on_rank


def real(tokens: Tokens) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def is_left_padded(tokens: Tokens) -> bool:
    return bool((tokens.mask[:, 1:] >= tokens.mask[:, :-1]).all()) and bool(tokens.mask[:, -1].all())


# Batches


@pytest.mark.parametrize("pair", [("llama", "qwen3"), ("gemma3", "qwen2")])
def test_a_training_batch_has_matching_shapes(make: Make, pair: tuple[str, str]) -> None:
    batch = next(iter(make(pair=pair).train_dataloader()))
    assert len(batch) == len(batch.ids) == len(set(batch.ids)) == 4
    for tokens in (batch.sharer, batch.receiver):
        assert tokens.ids.shape == tokens.mask.shape == tokens.spans.shape == (4, tokens.ids.shape[1])
        assert (tokens.ids.dtype, tokens.mask.dtype, tokens.spans.dtype) == (torch.long, torch.bool, torch.long)
        assert is_left_padded(tokens)
    assert (batch.last.shape, batch.last.dtype) == ((4, 1), torch.long)
    assert batch.answers.shape == batch.answer_mask.shape
    assert (batch.answers.dtype, batch.answer_mask.dtype) == (torch.long, torch.bool)
    assert batch.partners == ()


def test_receiver_last_and_answer_make_up_the_prompt(make: Make, model_folders: dict[str, Path]) -> None:
    module = make()
    tokenizer = AutoTokenizer.from_pretrained(model_folders["qwen3"])
    encoder = PromptEncoder(tokenizer, PromptSettings(), "max_receiver_tokens")
    for batch in module.train_dataloader():
        for row, example in enumerate(batch.examples):
            prompt = encoder.prompt(example.receiver, example.question)
            assert real(batch.receiver)[row] + batch.last[row].tolist() == prompt.ids
            assert batch.receiver.spans[row][batch.receiver.mask[row]].tolist() == prompt.spans[:-1]
            assert batch.answers[row][batch.answer_mask[row]].tolist() == encoder.answer(example.answers[0])
            assert set(batch.answers[row][~batch.answer_mask[row]].tolist()) <= {tokenizer.pad_token_id}


def test_answers_are_padded_on_the_right(make: Make) -> None:
    batches = list(make().train_dataloader())
    assert any((~batch.answer_mask).any() for batch in batches)
    for batch in batches:
        assert batch.answer_mask[:, 0].all()
        assert (batch.answer_mask[:, 1:] <= batch.answer_mask[:, :-1]).all()
        assert batch.answer_mask.any(0).all()  # no wider than the longest


@pytest.mark.parametrize("share", [True, False])
def test_the_sharer_reads_its_passages_and_maybe_the_question(
    make: Make, model_folders: dict[str, Path], share: bool
) -> None:
    settings = PromptSettings(share_question=share)
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model_folders["llama"]), settings, "max_sharer_tokens")
    batch = next(iter(make(prompts=settings).train_dataloader()))
    for row, example in enumerate(batch.examples):
        prompt = encoder.prompt(example.sharer, example.question if share else None)
        assert real(batch.sharer)[row] == prompt.ids
        assert int(batch.sharer.spans[row].max()) == len(example.sharer) - (not share)


def test_evaluation_batches_name_the_example_whose_message_is_wrong(make: Make) -> None:
    module = make("validate")
    examples = list(World(**SIZES).examples("validation", 42))
    batches = list(module.val_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [id for batch in batches for id in batch.ids] == [example.id for example in examples]
    partners = [partner for batch in batches for partner in batch.partners]
    assert {partner.id for partner in partners} <= {example.id for example in examples}
    assert all(example.sharer != partner.sharer for example, partner in zip(examples, partners, strict=True))


@pytest.mark.parametrize("sharers", [1, 2])
@pytest.mark.parametrize("share", [True, False])
def test_a_wrong_message_is_the_nearest_in_tokens_that_the_sharer_reads(make: Make, share: bool, sharers: int) -> None:
    world = World(**SIZES | {"test_size": 30})
    module = make("test", source=world, prompts=PromptSettings(share_question=share, sharers=sharers))
    lengths: dict[str, int] = {}
    partners: dict[str, str] = {}
    for batch in module.evaluation_loader("test"):
        tokens = batch.sharer.mask.sum(1).reshape(len(batch), sharers).sum(1).tolist()
        lengths |= dict(zip(batch.ids, tokens, strict=True))
        partners |= {row.id: partner.id for row, partner in zip(batch.examples, batch.partners, strict=True)}
    assert len(set(lengths.values())) > 5
    for id, partner in partners.items():
        nearest = min(abs(lengths[id] - length) for other, length in lengths.items() if other != id)
        assert abs(lengths[id] - lengths[partner]) == nearest


def test_a_limited_evaluation_is_a_sample_of_the_whole(make: Make) -> None:
    """Partners too, so that an evaluation can be extended."""
    module = make("test", source=World(**SIZES | {"test_size": 30}))
    whole, some, few = (
        [pair for batch in module.evaluation_loader("test", limit) for pair in zip(batch.examples, batch.partners)]  # noqa: B905
        for limit in (None, 12, 4)
    )
    assert (len(whole), len(some), len(few)) == (30, 12, 4)
    assert some == [pair for pair in whole if pair in some] != whole[:12]
    assert few == [pair for pair in some if pair in few]


def test_a_limit_takes_of_every_benchmark_in_proportion(make: Make) -> None:
    rows = [(f"{n}", "big" if n < 40 else "small") for n in range(50)]
    examples = [Example(id, id, ("a",), ((id,),), benchmark=name) for id, name in rows]
    module = make("test", source=Listed(*examples))
    (batch, *more) = module.evaluation_loader("test", 5)
    taken = [example.benchmark for part in (batch, *more) for example in part.examples]
    assert taken == ["big"] * 4 + ["small"]


# Ids


@pytest.mark.parametrize(("stage", "split"), [("validate", "validation"), ("test", "test"), ("fit", "validation")])
def test_an_id_that_occurs_twice_in_an_evaluation_is_refused(make: Make, stage: str, split: str) -> None:
    rows = [Example(id, id, ("a",), ((f"{at}",),)) for at, id in enumerate(["x", "y", "z", "y", "x"])]
    with pytest.raises(DataError, match=f"{split} split: ids must differ; 'y' is the id of example 2 and of example 4"):
        make(stage, source=Listed(*rows))
    named = [replace(row, benchmark="arc" if at < 3 else "mmlu") for at, row in enumerate(rows)]
    with pytest.raises(
        DataError, match="'y' is the id of example 2 of benchmark 'arc' and of example 1 of benchmark 'mm"
    ):
        make(stage, source=Listed(*named))
    assert len(make(stage, source=Listed(*rows[:3]))._examples[split]) == 3  # type: ignore[index]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_evaluation_without_repeating(make: Make, world_size: int) -> None:
    ids: list[list[str]] = []
    for rank in range(world_size):
        loader = on_rank(make("validate"), rank, world_size).val_dataloader()
        ids.append([id for batch in loader for id in batch.ids])
    assert sorted(id for part in ids for id in part) == sorted(e.id for e in World(**SIZES).examples("validation", 42))
    assert max(map(len, ids)) - min(map(len, ids)) == 1  # seven on two or three


def test_fewer_examples_than_ranks_are_refused(make: Make) -> None:
    with pytest.raises(DataError, match="validation split has 7 examples; 8 processes need at least one each"):
        on_rank(make("validate"), 0, 8).val_dataloader()
    assert len(list(on_rank(make("validate"), 6, 7).val_dataloader())) == 1


def test_evaluation_is_the_same_every_time(make: Make) -> None:
    first, second = (next(iter(make("test", seed=5).test_dataloader())) for _ in range(2))
    assert first.ids == second.ids
    assert first.partners == second.partners
    assert first.ids != next(iter(make("test", seed=6).test_dataloader())).ids


def test_each_stage_loads_its_split(make: Make) -> None:
    assert "validation" in next(iter(make("validate").val_dataloader())).ids[0]
    assert "/test/" in next(iter(make("test").test_dataloader())).ids[0]
    assert "/test/" in next(iter(make("predict").predict_dataloader())).ids[0]
    fit = make("fit")
    assert "/train/" in next(iter(fit.train_dataloader())).ids[0]
    assert sum(map(len, fit.val_dataloader())) == 7


def test_a_limit_reaches_the_batch(make: Make) -> None:
    free, limited = (
        next(iter(make("test", prompts=PromptSettings(max_receiver_tokens=limit)).test_dataloader()))
        for limit in (None, 60)
    )
    assert free.dropped_spans == 0 < limited.dropped_spans
    assert limited.receiver.ids.shape[1] + 1 <= 60 < free.receiver.ids.shape[1]


def test_a_batch_moves_with_all_its_tensors(make: Make) -> None:
    batch = next(iter(make("test").test_dataloader()))
    moved = batch.to("meta")
    sides = (moved.sharer, moved.receiver)
    tensors = [t for side in sides for t in (side.ids, side.mask, side.spans)]
    tensors += [moved.last, moved.answers, moved.answer_mask]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.examples, moved.partners, moved.prompts) == (batch.examples, batch.partners, batch.prompts)
    assert batch.last.device.type == "cpu"


# Order


# Resuming


# Settings


@pytest.mark.parametrize("setting", ["batch_size", "eval_batch_size"])
def test_batch_sizes_below_one_are_refused(make: Make, setting: str) -> None:
    for value in (0, -3):
        with pytest.raises(SettingError, match=f"^{setting}={value} must be at least 1"):
            make(**{setting: value})
    assert getattr(make(**{setting: 1}), setting) == 1


def test_batches_are_pinned_for_cuda_alone_and_loading_processes_stay(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.numel()) or tensor)
    for device, workers in (("cpu", 0), ("cuda", 2)):
        data = make(num_workers=workers)
        data.trainer.strategy.root_device = torch.device(device)  # type: ignore[union-attr, misc]
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert (loader.pin_memory, loader.persistent_workers) == (device == "cuda", workers > 0)
    batch = next(iter(make("test").test_dataloader()))
    same = batch.pin_memory()
    assert len(pinned) == 3 * 3 + 4
    assert torch.equal(same.index, batch.index)


def test_what_a_batch_knows_of_its_index_is_what_a_look_finds(make: Make) -> None:
    for sharers, send in ((1, None), (2, None), (1, 2)):
        prompts = PromptSettings(question=" {question}", sharers=sharers, send_tokens=send)
        batch = next(iter(make(prompts=prompts).train_dataloader()))
        found = Extent.of(batch.index)
        assert batch.extent is not None
        assert batch.extent.spans == found.spans
        assert batch.extent.tokens == (found.tokens if send is None else send)
        assert batch.sharer.largest == int(batch.sharer.ids.max())


def test_a_negative_number_of_workers_is_refused(make: Make) -> None:
    with pytest.raises(SettingError, match="num_workers=-1"):
        make(num_workers=-1).train_dataloader()
    assert make(num_workers=0).train_dataloader().num_workers == 0


def test_a_chat_without_template_is_refused(make: Make, model_folders: dict[str, Path], tmp_path: Path) -> None:
    own = AutoTokenizer.from_pretrained(model_folders["llama"])
    own.chat_template = None
    own.save_pretrained(tmp_path)
    collated = Collator.of(PromptSettings(chat=False), own, load_tokenizer(ModelSpec(str(model_folders["qwen3"]))))
    assert isinstance(collated.train([Example("1", "q", ("a",), (("s",),), (("r",),))]), Batch)
    with pytest.raises(SettingError, match="chat=true needs a tokenizer with a chat template"):
        Collator.of(PromptSettings(chat=True), own, own)


def test_passages_of_both_stand_before_each_sides_own(make: Make) -> None:
    """Where the two read different texts a source may give some to both; the wrong message's text is the sharer's."""
    data = make("test")
    told = Example("a", "who", ("ada",), (("Only the sharer.",),), (("Only the receiver.",),), shared=(("Both.",),))
    collator = Collator.of(PromptSettings(), load_tokenizer(data.sharer), load_tokenizer(data.receiver))
    batch = collator.train([told])
    sharer = collator.sharer.tokenizer.decode(batch.sharer.ids[0])
    receiver = collator.receiver.tokenizer.decode(batch.receiver.ids[0])
    assert sharer.startswith("Both.\nOnly the sharer.\n")
    assert receiver.startswith("Both.\nOnly the receiver.\n")
    assert batch.index.max() == 2  # two passages and the question


def test_who_has_read_no_passage_sends_what_it_makes_of_the_question(make: Make) -> None:
    rows = [Example(f"{n}", "Where is Mary? " * n, ("ada",)) for n in (1, 2, 9)]
    data = make("test", source=Listed(*rows))
    batch = next(iter(data.test_dataloader()))
    assert {row.id: partner.id for row, partner in zip(batch.examples, batch.partners, strict=True)}["1"] == "2"
    assert batch.sharer.spans.max() == 0
    assert data.tested_on == str(data.source)
    same = make("test", source=Listed(*(replace(rows[0], id=id) for id in "xy")))
    with pytest.raises(DataError, match="one and the same text in all of its 2 examples"):
        same.test_dataloader()


def test_a_source_that_gives_no_examples_is_named(make: Make) -> None:
    with pytest.raises(DataError, match="source=Listed gives dict, and must give Example"):
        make(source=Listed({"question": "who"}))  # type: ignore[arg-type]


def test_several_benchmarks_are_the_test_split_where_contexts_differ_too(make: Make) -> None:
    small = World(**SIZES)
    data = make("test", benchmarks={"one": small, "two": World(**{**SIZES, "test_size": 2})})
    examples = [example for batch in data.test_dataloader() for example in batch.examples]
    assert [row.benchmark for row in examples] == ["one"] * 5 + ["two"] * 2
    assert [row.id for row in examples[:5]] == [f"one/{row.id}" for row in small.examples("test", data.seed)]
    assert data.tested_on == "one, two"
