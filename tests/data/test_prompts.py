from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.data.spans import parse_span_mode
from lcf_lightning.data.tokens import Encoded
from lcf_lightning.errors import DataError, SettingError
from tests.data.conftest import PASSAGES, QUESTION, encoder

MODES = ("paragraph", "sentence", "window:5")
ANY_PASSAGE = st.lists(st.text(max_size=12), min_size=1, max_size=3).map(tuple)
QUICK = settings(max_examples=60, deadline=None)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def span_texts(tokenizer: PreTrainedTokenizerBase, prompt: Encoded) -> dict[int, str]:
    """Each span's text, -1 for the tokens in none."""
    pairs = list(zip(prompt.ids, prompt.spans, strict=True))
    return {s: text_of(tokenizer, [token for token, span in pairs if span == s]) for s in sorted(set(prompt.spans))}


def test_a_paragraph_is_a_span(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = encoder(tokenizer).prompt(PASSAGES, QUESTION)
    texts = span_texts(tokenizer, prompt)
    assert [texts[span] for span in range(3)] == ["".join(passage) + "\n" for passage in PASSAGES]
    assert texts[3] == "Question: Where is Mary?\nAnswer:"
    assert texts[-1] == "\n"
    assert list(texts) == [-1, 0, 1, 2, 3]


def test_a_sentence_is_a_span(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = span_texts(tokenizer, encoder(tokenizer, spans="sentence").prompt(PASSAGES, QUESTION))
    sentences = ["Mary moved.", " She sat down.\n", "John ran.\n", "The cat, the dog.", " Both slept.", " All night.\n"]
    assert [texts[span] for span in range(6)] == sentences
    assert texts[6] == "Question: Where is Mary?\nAnswer:"
    assert max(texts) == 6


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_window_is_a_span(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """N context tokens a window, across passages; the last may be shorter."""
    prompt = encoder(tokenizer, spans=f"window:{size}").prompt(PASSAGES, QUESTION)
    paragraphs = encoder(tokenizer).prompt(PASSAGES, QUESTION)
    context = [span for span, other in zip(prompt.spans, paragraphs.spans, strict=True) if 0 <= other < 3]
    assert context == [place // size for place in range(len(context))]
    assert prompt.spans[-1] == context[-1] + 1
    assert prompt.ids == paragraphs.ids


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_question_is_the_last_span_and_runs_to_the_end(
    tokenizer: PreTrainedTokenizerBase, mode: str, chat: bool
) -> None:
    prompt = encoder(tokenizer, spans=mode, chat=chat).prompt(PASSAGES, QUESTION)
    first = prompt.spans.index(max(prompt.spans))
    assert set(prompt.spans[first:]) == {max(prompt.spans)}
    assert text_of(tokenizer, prompt.ids[first:]).startswith("Question: Where is Mary?")
    assert text_of(tokenizer, prompt.ids).endswith(text_of(tokenizer, prompt.ids[first:]))


@pytest.mark.parametrize("mode", MODES)
def test_without_a_question_only_the_context_has_spans(tokenizer: PreTrainedTokenizerBase, mode: str) -> None:
    asked, silent = (encoder(tokenizer, spans=mode).prompt(PASSAGES, question) for question in (QUESTION, None))
    assert max(silent.spans) == max(asked.spans) - 1
    assert silent.spans[-1] == -1
    assert text_of(tokenizer, silent.ids) == "".join("".join(p) + "\n" for p in PASSAGES) + "\n"


def test_without_passages_the_question_is_the_only_span(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = encoder(tokenizer, context="Read this: {passages}").prompt((), QUESTION)
    assert text_of(tokenizer, prompt.ids) == "Question: Where is Mary?\nAnswer:"
    assert set(prompt.spans) == {0}


def test_templates_are_written_as_given(tokenizer: PreTrainedTokenizerBase) -> None:
    own = encoder(tokenizer, context="[[{passages}]]", separator=" | ", question="Q: {question} A:")
    prompt = own.prompt(PASSAGES[:2], "{passages} of {question}?")
    expected = "[[Mary moved. She sat down. | John ran. | ]]Q: {passages} of {question}? A:"
    assert text_of(tokenizer, prompt.ids) == expected
    assert span_texts(tokenizer, prompt)[-1] == "[[]]"  # the tokens around the passages, put together


def test_a_text_enters_after_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = encoder(tokenizer, text="They say: {text}\n")
    told = text_of(tokenizer, prompts.prompt(PASSAGES, QUESTION, "Mary left.").ids)
    context, question = text_of(tokenizer, prompts.prompt(PASSAGES, None).ids), "Question: Where is Mary?\nAnswer:"
    assert told == f"{context}They say: Mary left.\n{question}"


def test_a_text_may_enter_before_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = encoder(tokenizer, text="They say: {text}\n", text_place="before")
    plain, told = prompts.prompt(PASSAGES, QUESTION), prompts.prompt(PASSAGES, QUESTION, "Mary left.")
    assert text_of(tokenizer, told.ids) == "They say: Mary left.\n" + text_of(tokenizer, plain.ids)
    assert span_texts(tokenizer, told) == span_texts(tokenizer, plain) | {-1: "They say: Mary left.\n\n"}  # in no span


@pytest.mark.parametrize(("share", "shown"), [(True, QUESTION), (False, "")])
def test_a_text_is_asked_for_after_the_context(tokenizer: PreTrainedTokenizerBase, share: bool, shown: str) -> None:
    prompts = encoder(tokenizer, text_request="On {question}:", share_question=share)
    asked = text_of(tokenizer, prompts.text_prompt(PASSAGES, QUESTION).ids)
    assert asked == text_of(tokenizer, prompts.prompt(PASSAGES, None).ids) + f"On {shown}:"
    limited = replace(prompts, settings=replace(prompts.settings, max_sharer_tokens=30))
    assert text_of(tokenizer, limited.text_prompt(PASSAGES, QUESTION).ids).endswith(f"On {shown}:")  # never cut
    assert len(limited.text_prompt(PASSAGES, QUESTION).ids) <= 30


def test_a_text_can_be_asked_for_in_a_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = encoder(tokenizer, text_request="Sum up.", text_chat=True)
    asked = text_of(tokenizer, prompts.text_prompt(PASSAGES, QUESTION).ids)
    assert asked == text_of(
        tokenizer, encoder(tokenizer, text_request="Sum up.", chat=True).text_prompt(PASSAGES, "").ids
    )
    assert asked.endswith("Sum up.\n<|assistant|>\n")
    assert "<|" not in text_of(tokenizer, prompts.prompt(PASSAGES, QUESTION).ids)


def test_without_its_limit_an_encoder_keeps_everything(tokenizer: PreTrainedTokenizerBase) -> None:
    limited = encoder(tokenizer, max_sharer_tokens=40)
    assert limited.prompt(PASSAGES, QUESTION).dropped > 0
    assert limited.unlimited().prompt(PASSAGES, QUESTION) == encoder(tokenizer).prompt(PASSAGES, QUESTION)


def test_chat_wraps_the_prompt_in_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = encoder(tokenizer, chat=True).prompt(PASSAGES, QUESTION)
    texts = span_texts(tokenizer, prompt)
    assert text_of(tokenizer, prompt.ids).startswith("<|user|>\nMary moved.")
    assert text_of(tokenizer, prompt.ids).endswith("Answer:\n<|assistant|>\n")
    assert [texts[span] for span in range(3)] == ["".join(passage) + "\n" for passage in PASSAGES]
    assert texts[-1] == "<|user|>\n\n"


def test_the_chat_template_head_is_in_no_span(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where the template strips the blank before the first passage (SQuAD's sentences begin with one)."""
    texts = span_texts(tokenizer, encoder(tokenizer, chat=True).prompt(((" She sat down.",), ("Then",)), QUESTION))
    assert texts[0] == "She sat down.\n"
    assert texts[1] == "Then\n"
    assert texts[-1] == "<|user|>\n\n"


def test_a_chat_template_that_changes_the_text_is_refused(model_folders: dict[str, Path]) -> None:
    own = AutoTokenizer.from_pretrained(model_folders["llama"])
    own.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match=r"chat=true.*changes the text.*use chat=false"):
        encoder(own, chat=True).prompt(PASSAGES, QUESTION)
    assert encoder(own, chat=False).prompt(PASSAGES, QUESTION).ids


def test_chat_needs_a_chat_template(model_folders: dict[str, Path]) -> None:
    own = AutoTokenizer.from_pretrained(model_folders["llama"])
    own.chat_template = None
    for name in ("chat", "text_chat"):
        with pytest.raises(SettingError, match=f"^{name}=true needs a tokenizer with a chat template"):
            encoder(own, **{name: True})
    assert PromptEncoder(own, PromptSettings(text_chat=True), "max_receiver_tokens")  # only the sharer is asked
    assert encoder(own, chat=False).tokenizer is own


@QUICK
@given(passages=st.lists(ANY_PASSAGE, min_size=1, max_size=5), question=st.text(max_size=12))
@pytest.mark.parametrize("mode", MODES)
def test_spans_tile_the_context_of_any_text(
    tokenizer: PreTrainedTokenizerBase, passages: list[tuple[str, ...]], question: str, mode: str
) -> None:
    """Spans never go back, leave none out, and hold every token of the passages and the question."""
    prompt = encoder(tokenizer, spans=mode).prompt(passages, question)
    real = [span for span in prompt.spans if span >= 0]
    outside = text_of(tokenizer, [token for token, span in zip(prompt.ids, prompt.spans, strict=True) if span < 0])
    assert real == sorted(real)
    assert outside == "\n"  # what the context template writes after the passages, nothing else
    if mode != "sentence":  # an empty sentence has no token
        assert set(real) == set(range(max(real) + 1))
    assert text_of(tokenizer, prompt.ids).endswith(f"\nQuestion: {question}\nAnswer:")


@QUICK
@given(passages=st.lists(ANY_PASSAGE, min_size=1, max_size=5), question=st.none() | st.text(max_size=12))
def test_a_span_decodes_to_its_passage(
    tokenizer: PreTrainedTokenizerBase, passages: list[tuple[str, ...]], question: str | None
) -> None:
    texts = span_texts(tokenizer, encoder(tokenizer).prompt(passages, question))
    assert [texts[span] for span in range(len(passages))] == ["".join(passage) + "\n" for passage in passages]
    assert max(texts) == len(passages) - (question is None)


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_drops_whole_spans_from_the_end_of_the_context(tokenizer: PreTrainedTokenizerBase, mode: str) -> None:
    whole = encoder(tokenizer, spans=mode).prompt(PASSAGES, QUESTION)
    question = max(whole.spans)
    for limit in range(whole.spans.count(question) + whole.spans.count(-1), len(whole.ids) + 2):
        prompt = encoder(tokenizer, spans=mode, max_sharer_tokens=limit).prompt(PASSAGES, QUESTION)
        kept = [s for s in whole.spans if s < question - prompt.dropped or s == question]
        assert len(prompt.ids) == len(kept) <= limit
        assert (
            prompt.dropped == 0 or len(kept) + whole.spans.count(question - prompt.dropped) > limit
        )  # no more than needed
        assert prompt.spans == [question - prompt.dropped if span == question else span for span in kept]
        assert text_of(tokenizer, prompt.ids).endswith("\nQuestion: Where is Mary?\nAnswer:")


def test_a_limit_can_take_all_context(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encoder(tokenizer).prompt(PASSAGES, None)
    rest = whole.spans.count(-1)
    prompt = encoder(tokenizer, max_sharer_tokens=rest).prompt(PASSAGES, None)
    assert prompt.dropped == 3
    assert prompt.spans == [-1] * rest


@pytest.mark.parametrize("limit", ["max_sharer_tokens", "max_receiver_tokens"])
def test_a_question_is_never_cut(tokenizer: PreTrainedTokenizerBase, limit: str) -> None:
    alone = len(encoder(tokenizer).prompt((), QUESTION).ids)
    small, enough = (PromptSettings(**{limit: count}) for count in (alone - 1, alone))
    with pytest.raises(DataError, match=rf"{limit}={alone - 1} is too small.*has {alone} tokens"):
        PromptEncoder(tokenizer, small, limit).prompt((), QUESTION)
    with pytest.raises(DataError, match=rf"{limit}={alone - 1} is too small"):
        PromptEncoder(tokenizer, small, limit).prompt(PASSAGES, QUESTION)
    assert len(PromptEncoder(tokenizer, enough, limit).prompt((), QUESTION).ids) == alone


def test_each_side_has_its_own_limit(tokenizer: PreTrainedTokenizerBase) -> None:
    both = PromptSettings(max_sharer_tokens=60, max_receiver_tokens=None)
    sharer, receiver = (PromptEncoder(tokenizer, both, f"max_{side}_tokens") for side in ("sharer", "receiver"))
    assert sharer.prompt(PASSAGES, QUESTION).dropped > 0
    assert receiver.prompt(PASSAGES, QUESTION).dropped == 0


def test_an_answer_ends_the_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = encoder(tokenizer).answer("the {question} bathroom")
    assert plain[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in plain[:-1]
    assert text_of(tokenizer, plain[:-1]) == " the {question} bathroom"


def test_an_answer_in_a_chat_begins_without_a_blank(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = encoder(tokenizer, chat=True, answer=" It is {answer}.").answer("here")
    assert text_of(tokenizer, chat[:-1]) == "It is here."
    assert chat[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("name", "slot"), [("context", "passages"), ("question", "question"), ("answer", "answer")]
)  # fmt: skip
def test_a_template_needs_its_slot_once(name: str, slot: str) -> None:
    for value in ("nothing", f"{{{slot}}} {{{slot}}}"):
        with pytest.raises(SettingError, match=rf"^{name}=.* must hold \{{{slot}\}} exactly once"):
            PromptSettings(**{name: value})
    assert getattr(PromptSettings(**{name: f"[{{{slot}}}]"}), name) == f"[{{{slot}}}]"


@pytest.mark.parametrize("mode", ["", "word", "window", "window:0", "window:-3", "window:2.5", "window:", "Paragraph"])
def test_an_unknown_span_mode_is_refused(mode: str) -> None:
    with pytest.raises(SettingError, match=rf"spans='{mode}' must be paragraph, sentence or window:N"):
        PromptSettings(spans=mode)
    with pytest.raises(SettingError, match="must be paragraph"):
        parse_span_mode(mode)


@pytest.mark.parametrize("name", ["max_sharer_tokens", "max_receiver_tokens"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(SettingError, match=f"{name}={value} must be at least 1, or null"):
            PromptSettings(**{name: value})
    assert getattr(PromptSettings(**{name: 1}), name) == 1


def test_span_modes_parse() -> None:
    assert parse_span_mode("paragraph") == ("paragraph", 0)
    assert parse_span_mode("sentence") == ("sentence", 0)
    assert parse_span_mode("window:32") == ("window", 32)
