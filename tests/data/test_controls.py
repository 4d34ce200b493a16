"""What comes from outside, in a prompt: control tokens in what is said, and chat templates of a tokenizer."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcf_lightning.data import templates
from lcf_lightning.errors import DataError
from tests.data.conftest import PASSAGES, QUESTION, encoder

EOS = "<eos>"


@pytest.mark.parametrize("chat", [False, True])
def test_a_control_tokens_text_is_that_token_where_settings_write_it_only(
    tokenizer: PreTrainedTokenizerBase, chat: bool
) -> None:
    asked = {"passages": [(f"Mary{EOS}.", f" {EOS}")], "question": f"Where is {EOS}?", "text": f"I {EOS} say",
             "history": [(f"Who {EOS}?", f"{EOS}Mary")]}  # fmt: skip
    plain = {"passages": [("Mary.", " ")], "question": "Where is ?", "text": "I  say", "history": [("Who ?", "Mary")]}
    for settings in ({}, {"question": f"{EOS}{{question}}{EOS}", "answer": f" {{answer}}{EOS}", "answer_prefix": EOS}):
        own = encoder(tokenizer, chat=chat, **settings)
        ids, expected = own.prompt(**asked).ids, own.prompt(**plain).ids  # type: ignore[arg-type]
        assert ids.count(tokenizer.eos_token_id) == expected.count(tokenizer.eos_token_id)
        assert (expected.count(tokenizer.eos_token_id) > 0) == bool(settings)
        assert tokenizer.decode(ids).count(EOS) == 6 + expected.count(tokenizer.eos_token_id)
        said = own.candidate(f"a{EOS}b")
        assert said.count(tokenizer.eos_token_id) == bool(settings)
        assert tokenizer.decode(said).count(EOS) == 1 + bool(settings)


def test_a_text_asked_for_and_what_stands_where_are_as_they_were(tokenizer: PreTrainedTokenizerBase) -> None:
    own = encoder(tokenizer, chat=True)
    asked = own.text_prompt(PASSAGES, f"{EOS}?")
    assert tokenizer.eos_token_id not in asked.ids
    prompt = own.prompt([(f"Mary {EOS} moved.",)], QUESTION)
    pairs = list(zip(prompt.ids, prompt.spans, strict=True))
    by_span = [tokenizer.decode([token for token, span in pairs if span == which]) for which in (0, 1)]
    assert by_span[0].strip() == f"Mary {EOS} moved."
    assert "Where is Mary?" in by_span[1]
    ids, places = own._tokenized(["x", f"a{EOS}b", ""], [(1, 8)])
    assert [places[0][0], places[-1][0]] == [0, 1]
    assert places[-1][2] == 7
    assert len(ids) == len(places)


ENDLESS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "chat template takes more than 0.3 seconds"),
        (
            "{% for a in range(99999) %}{{ messages[0].content }}{% endfor %}",
            "writes [0-9,]{7,} characters, too",
        ),
        ("{{ 1 / 0 }}", "chat template fails: division by zero"),
        ("{% for m in messages %}{{ m.content }", "chat template fails: "),
        ("{{ raise_exception('no\nno') }}", "chat template fails: no$"),
        ("{{ messages.pop }}{{ nothing.of.this }}", "chat template fails: 'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "chat template fails: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "chat template fails: "),
    ],
)
def test_a_chat_template_from_anywhere_fails_by_a_sentence(
    model_folders: dict[str, Path], template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    tokenizer.chat_template = template
    monkeypatch.setattr(templates, "SECONDS", 0.3 if template == ENDLESS else 60.0)
    monkeypatch.setattr(templates, "_watching", None)  # a watch that looks as often
    started = time.monotonic()
    with pytest.raises(DataError, match=message):
        encoder(tokenizer, chat=True).prompt(PASSAGES, QUESTION)
    assert time.monotonic() - started < 40


def test_a_template_that_was_interrupted_leaves_nothing_behind(tokenizer: PreTrainedTokenizerBase) -> None:
    assert templates._until == {}
    own = encoder(tokenizer, chat=True)
    assert replace(own).prompt(PASSAGES, QUESTION) == own.prompt(PASSAGES, QUESTION)


def test_a_mark_of_the_chat_template_is_a_control_token_too(tokenizer: PreTrainedTokenizerBase) -> None:
    """Some tokenizers do not call those special that their templates write around turns."""
    tokenizer = deepcopy(tokenizer)  # other tests have it, too
    tokenizer.add_tokens(["<turn>", "<other>"])
    tokenizer.chat_template = "<turn>" + str(tokenizer.chat_template)
    mark, other = tokenizer.convert_tokens_to_ids(["<turn>", "<other>"])
    ids = encoder(tokenizer, chat=True).prompt([("Mary <turn> <other> moved.",)], QUESTION).ids
    assert (ids.count(mark), ids.count(other)) == (1, 1)


def test_what_a_tokenizer_puts_around_a_text_stands_around_one_that_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = deepcopy(tokenizer)
    around = processors.TemplateProcessing(single=f"{EOS} $A {EOS}", special_tokens=[(EOS, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = around
    ids = encoder(tokenizer).prompt([(f"ada {EOS} ben",)], QUESTION).ids
    assert [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id] == [0, len(ids) - 1]
