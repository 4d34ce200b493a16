"""Limits of a receiver that has a message before its own tokens, and decoding on such a cache."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from lcf_lightning import Channel, Message, ModelSpec
from lcf_lightning.errors import GeometryError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.models.decoding import _Progress
from lcf_lightning.receiving import decoder
from tests.conftest import byte_tokenizer
from tests.pairs import channel_of, small_module
from tests.prefix.conftest import FACTS, Spec, ready, written
from tests.test_many_sharers import EXAMPLES, PROMPTS


@torch.no_grad()
def test_token_limits_drop_spans_and_do_not_count_a_messages_tokens(spec: Spec) -> None:
    module = ready(spec("llama"), spec("qwen3"))

    def limited(**limits: int) -> Channel:
        adapter = copy.copy(module.adapter)
        adapter.config = replace(adapter.config, metadata={"prompts": limits})
        return Channel(module.link.sharer, module.link.receiver, adapter)

    wide = limited()
    theirs, own = (
        len(wide.writer.encoder(wide.prompts, role).prompt([(fact,) for fact in FACTS[:2]], "likes ada").ids)
        for role in ("sharer", "receiver")
    )
    tight = limited(max_sharer_tokens=theirs, max_receiver_tokens=own)
    with pytest.warns(UserWarning, match="max_sharer_tokens, as in training, leaves out 1 spans"):
        message = tight.send(FACTS, "likes ada")
    fewer = wide.send(FACTS[:2], "likes ada")
    assert message.spans == 3
    for name in ("keys", "values"):
        assert torch.equal(getattr(message, name), getattr(fewer, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the receiver's two facts fit, with three tokens before them
        made = decoder(tight, [message], ["likes ada"], [FACTS[:2]], 4, {})
    assert (made.prompt_tokens, made.cache.mask.shape[1]) == ([own], own - 1 + 3)

    tight = limited(max_receiver_tokens=own - 1)
    with pytest.warns(UserWarning, match="max_receiver_tokens, as in training, leaves out 1 spans"):
        made = decoder(tight, [tight.send(FACTS, "likes ada")], ["likes ada"], [FACTS[:2]], 4, {})
    assert made.cache.mask.shape[1] == made.prompt_tokens[0] - 1 + 4
    assert made.prompt_tokens[0] < own - 1

    limit = max(
        len(wide.writer.encoder(PROMPTS, "sharer").prompt(row.sharer[:2], row.question).ids) for row in EXAMPLES
    )
    batch = written(wide, prompts=replace(PROMPTS, max_sharer_tokens=limit))
    caches = ArmCaches(wide.link, wide.writer, batch)
    assert batch.dropped_spans == 2  # of four facts of the first row
    assert (caches.message.cache.mask.sum(1) - caches.own_context.cache.mask.sum(1)).tolist() == [3, 3]


@torch.no_grad()
def test_beams_find_the_likeliest_pair_on_the_fused_cache(channel: Channel) -> None:
    """Of the likeliest first tokens and what may follow them, by teacher forcing; one beam is greedy."""
    message = channel.send(FACTS, "likes ada")
    made = decoder(channel, [message], ["likes ada"], [FACTS[:1]], 2, {})

    def said(**options: int) -> list[int]:
        asked = {"min_new_tokens": 2, **options}
        made = decoder(channel, [message], ["likes ada"], [FACTS[:1]], 2, asked)
        return made._generate(_Progress(made.watch))[0].tolist()

    def likelihoods(tokens: torch.Tensor) -> torch.Tensor:
        """Log probabilities of what stands at each place of ``tokens``, an end apart."""
        cache, last = made.cache.rows(torch.zeros(len(tokens)).long()), made.ids[:, -1:].expand(len(tokens), 1)
        said = channel.link.continuation(cache, last, tokens, torch.ones_like(tokens).bool())
        found = said.logits().log_softmax(-1)
        found[..., list(channel.link.receiver.stop_ids)] = float("-inf")
        return found

    values, first = likelihoods(torch.zeros(1, 1).long())[0, 0].topk(3)
    pairs = values[:, None] + likelihoods(first[:, None].expand(-1, 2))[:, 1]
    place, token = divmod(int(pairs.argmax()), pairs.shape[1])
    assert said(num_beams=3) == [int(first[place]), token]
    assert said() == said(num_beams=1) == [int(first[0]), int(pairs[0].argmax())]


def first_logits(channel: Channel, question: str, sent: Message) -> torch.Tensor:
    """The receiver's, read on the fused cache."""
    made = decoder(channel, [[sent]], [question], [()], 1, {})
    with torch.no_grad():
        mask = torch.ones(1, 1).bool()
        return channel.link.continuation(made.cache, made.ids[:, -1:], made.ids[:, :1], mask).logits()


def mistral(folder: Path, **settings: int) -> ModelSpec:
    """A model whose layers all slide."""
    tokenizer = byte_tokenizer(300)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **small, **settings)
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSpec(str(folder))


@pytest.mark.parametrize("limit", ["sliding_window", "max_position_embeddings"])
def test_a_message_out_of_sight_is_refused(spec: Spec, tmp_path: Path, limit: str) -> None:
    """A whole window before the prompt's last token, or more positions than the receiver has."""
    receiver = mistral(tmp_path, **{"sliding_window": 99, "max_position_embeddings": 99, limit: 40})
    channel = channel_of(ready(spec("llama"), receiver))
    message = channel.send(FACTS, "q")  # four tokens
    fits = "q" * (40 - 4 - channel.receive(message, "q").prompt_tokens + 1)
    first = message.values.clone()
    first[..., 0, :] += 10  # seen from the very edge of the window
    changed = first_logits(channel, fits, replace(message, values=first)) - first_logits(channel, fits, message)
    assert changed.abs().max() > 1e-6
    with pytest.raises(GeometryError, match=r"message and prompt are 41 tokens, .* within 40 only; send fewer"):
        channel.receive(message, f"{fits}q")
    paper = small_module(spec("llama"), receiver)
    paper.configure_model()
    assert channel_of(paper.eval()).receive(channel_of(paper).send(FACTS, "q"), f"{fits}q").prompt_tokens == 37


def test_a_sharer_is_not_given_more_than_it_can_read_without_a_word(spec: Spec, tmp_path: Path) -> None:
    channel = channel_of(ready(mistral(tmp_path, max_position_embeddings=40), spec("qwen3")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channel.send(FACTS[:1], "q")
    with pytest.warns(UserWarning, match=r"the sharer reads \d+ tokens, and .* was made for 40") as found:
        assert channel.send(FACTS * 3, "q").spans == 10
    assert [warning.filename for warning in found] == [__file__]


def test_only_layers_that_are_written_can_show_a_message(spec: Spec) -> None:
    """Gemma 3, window 6: where the layers that an adapter writes all slide, they have to see it."""
    question = "q" * 30
    for layers, heard in ((None, True), ((1, 2), True), ((0, 1, 3), False)):
        module = small_module(spec("llama"), spec("gemma3"), pooler="prefix", dropout=0.0, layers=layers)
        module.configure_model()
        channel = channel_of(module.eval())
        message = channel.send(FACTS[:2], "q")
        if heard:
            louder = replace(message, keys=message.keys + 10, values=message.values + 10)
            assert (first_logits(channel, question, louder) - first_logits(channel, question, message)).any()
        else:
            with pytest.raises(GeometryError, match="within 6 only; send fewer spans"):
                channel.receive(message, question)


def test_tokens_of_a_message_count_for_no_penalty(channel: Channel) -> None:
    """`generate` sees ids in their place, all of which the prompt holds already."""
    made = decoder(channel, [channel.send(FACTS, "likes ada")], ["likes ada"], [()], 4, {"repetition_penalty": 5.0})
    own = decoder(channel, [channel.send(FACTS[:1], "likes ada")], ["likes ada"], [()], 4, {})
    assert made.ids.shape[1] - own.ids.shape[1] == 2
    assert set(made.ids[0, :4].tolist()) == {int(made.ids[0, -1])}
    assert made.ids[0, 4:].tolist() == own.ids[0, 2:].tolist()
