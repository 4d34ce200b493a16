"""Token alignment, on texts that no tokenizer was made for."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lcf_lightning.data.alignment import Layout, align, align_places, by_position
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import PromptEncoder
from lcf_lightning.errors import GeometryError
from tests.conftest import CORPUS, byte_tokenizer

TEMPLATES = {
    "short": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>",
    "long": "SYSTEM You are a helpful assistant.\n{% for m in messages %}[{{ m.role }}]:\n{{ m.content }} [end]\n"
    "{% endfor %}[assistant]:\n",
}


@cache
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Four that cut differently: two byte-level vocabularies, whole words with byte fallback, and single characters."""
    metaspace = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    metaspace.normalizer = normalizers.Replace(" ", "▁")
    metaspace.decoder = decoders.Replace("▁", " ")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<eos>", *fallback], show_progress=False)
    metaspace.train_from_iterator(CORPUS, trainer)
    characters = Tokenizer(models.BPE())
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    characters.train_from_iterator(
        [""], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
    )
    found = {
        "bytes": byte_tokenizer(300),
        "more bytes": byte_tokenizer(400),
        "words": PreTrainedTokenizerFast(tokenizer_object=metaspace, eos_token="<eos>", unk_token="<unk>"),
        "characters": PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>"),
    }
    for name, tokenizer in found.items():
        tokenizer.chat_template = TEMPLATES["short" if name in ("bytes", "words") else "long"]
    return found


def encoder(name: str, chat: bool = False) -> PromptEncoder:
    return PromptEncoder(tokenizers()[name], PromptSettings(chat=chat, question="{question}"), "max_sharer_tokens")


def layout(name: str, example: Example, chat: bool = False) -> tuple[list[int], Layout]:
    encoded, found = encoder(name, chat).shared_prompt(example)
    return encoded.ids, found


def example(text: str, *history: tuple[str, str]) -> Example:
    return Example("x", text, ("yes",), (), (), history=history)


PAIRS = [(one, other) for one in ("bytes", "more bytes", "words", "characters") for other in ("bytes", "words")]
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x02\x03"), min_size=1, max_size=60)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("strategy", ["first", "longest"])
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_every_token_is_mapped_monotonically_to_the_same_characters(
    pair: tuple[str, str], strategy: str, text: str
) -> None:
    (theirs, sharer), (own, receiver) = (layout(name, example(text)) for name in pair)
    if not len(theirs):  # a tokenizer may drop a character that it does not know
        return
    index = align(sharer, receiver, strategy)
    assert len(index) == len(own)
    if all(np.array_equal(one, other) for one, other in zip(sharer, receiver, strict=True)):
        assert index.tolist() == list(range(len(own)))
        return
    assert ((index >= 0) & (index < len(theirs))).all()
    assert (np.diff(index) >= 0).all()
    common = np.minimum(sharer.ends[index], receiver.ends) - np.maximum(sharer.starts[index], receiver.starts)
    for token in range(len(own)):  # wherever any sharer token shares a character, the chosen one does
        shares = np.minimum(sharer.ends, receiver.ends[token]) - np.maximum(sharer.starts, receiver.starts[token])
        if shares.max() > 0:
            assert common[token] > 0
            assert strategy == "first" or common[token] == shares.max()
            assert strategy == "longest" or index[token] == np.flatnonzero(shares > 0)[0]


@pytest.mark.parametrize("name", ["bytes", "words", "characters"])
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_equal_tokenizers_align_one_to_one(name: str, text: str) -> None:
    ids, found = layout(name, example(text))
    if len(ids):
        assert align(found, found, "first").tolist() == list(range(len(ids)))
        assert align(found, found, "longest").tolist() == list(range(len(ids)))


def test_equal_tokenizers_align_one_to_one_in_contents_whatever_the_templates() -> None:
    text = "naïve 🧪🧬 Ελλάδα 漢字 test"
    found = []
    for template in TEMPLATES.values():
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = template
        encoder = PromptEncoder(tokenizer, PromptSettings(chat=True, question="{question}"), "max_sharer_tokens")
        encoded, at = encoder.shared_prompt(example(text))
        found.append((np.array(encoded.ids), at))
    (theirs, sharer), (own, receiver) = found
    assert len(theirs) != len(own)
    index, said = align(sharer, receiver, "first"), receiver.pieces == 1
    assert theirs[index[said]].tolist() == own[said].tolist()
    assert len(set(index[said])) == said.sum() > len(text)


@pytest.mark.parametrize("name", ["bytes", "words", "characters"])
def test_a_layout_says_where_each_token_stands(name: str) -> None:
    text = "The sharer has read something that the receiver has not. Mary moved."
    ids, found = layout(name, example(text))
    decoded = [tokenizers()[name].decode([token]).replace("Ġ", " ") for token in ids]
    stretches = [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert [part.strip() for part in decoded] == [part.strip() for part in stretches]
    assert "".join(stretches).replace(" ", "") == text.replace(" ", "")


def test_first_and_longest_differ_where_a_token_is_cut() -> None:
    # The receiver reads "abcdef" as one token, the sharer as a · bcde · f.
    sharer = Layout(np.array([1, 1, 1]), np.array([0, 1, 5]), np.array([1, 5, 6]))
    receiver = Layout(np.array([1]), np.array([0]), np.array([6]))
    assert align(sharer, receiver, "first").tolist() == [0]
    assert align(sharer, receiver, "longest").tolist() == [1]
    assert align(receiver, sharer, "first").tolist() == [0, 0, 0]


@pytest.mark.parametrize("pair", [("bytes", "more bytes"), ("more bytes", "bytes"), ("characters", "words")])
@settings(max_examples=30, deadline=None)
@given(text=texts.map(str.strip).filter(bool), said=texts.map(str.strip).filter(bool))
def test_templates_align_by_role_and_contents_by_character(pair: tuple[str, str], text: str, said: str) -> None:
    chat = example(text, (said, "Sure."))
    (_, sharer), (own, receiver) = (layout(name, chat, chat=True) for name in pair)
    index = align(sharer, receiver, "longest")
    assert (np.diff(index) >= 0).all()
    assert len(index) == len(own)
    # Each piece of the receiver's prompt goes to the same piece of the sharer's: user, assistant, user, and between.
    assert (sharer.pieces[index] == receiver.pieces).all()
    assert set(receiver.pieces) == set(range(7)) - ({0} - set(receiver.pieces))


def test_the_pieces_of_a_chat_are_its_turns() -> None:
    chat = example("And now?", ("Hello", "Hi there"))
    ids, found = layout("bytes", chat, chat=True)
    tokenizer = tokenizers()["bytes"]
    said = [
        tokenizer.decode([id for id, at in zip(ids, found.pieces, strict=True) if at == piece]) for piece in range(7)
    ]
    assert [said[piece] for piece in (1, 3, 5)] == ["Hello", "Hi there", "And now?"]
    assert [said[piece] for piece in (0, 2, 4, 6)] == ["<user>", "<assistant>", "<user>", "<assistant>"]


def test_a_piece_that_the_sharer_lacks_takes_the_token_before_it() -> None:
    sharer = Layout(np.array([1, 1, 3]), np.array([0, 2, 0]), np.array([2, 4, 3]))
    receiver = Layout(np.array([0, 1, 2, 2, 3]), np.array([0, 0, 0, 3, 0]), np.array([5, 4, 3, 5, 3]))
    assert align(sharer, receiver, "first").tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(GeometryError, match="without a token"):
        align(Layout(*(np.array([], dtype=int) for _ in range(3))), receiver, "first")


def test_positions_are_spread_from_end_to_end() -> None:
    assert by_position(5, 3).tolist() == [0, 2, 4]
    assert by_position(3, 5).tolist() == [0, 0, 1, 2, 2]
    assert by_position(4, 4).tolist() == [0, 1, 2, 3]
    assert by_position(1, 3).tolist() == [0, 0, 0]
    assert by_position(7, 1).tolist() == [0]


def test_alignment_is_fast() -> None:
    text = "The sharer has read something that the receiver has not. " * 40
    (_, sharer), (own, receiver) = (layout(name, example(text)) for name in ("words", "characters"))
    assert len(own) > 2000
    started = time.perf_counter()
    for _ in range(20):
        layout("characters", example(text))
    tokenised = time.perf_counter()
    for _ in range(20):
        align(sharer, receiver, "longest")
    assert time.perf_counter() - tokenised < tokenised - started  # less than the tokenisation that it follows


def test_of_tokens_that_cover_as_much_the_first_is_taken() -> None:
    def layout(starts: list[int], ends: list[int]) -> Layout:
        return Layout(np.ones(len(starts), dtype=np.int64), np.array(starts), np.array(ends))

    sharer, receiver = layout([0, 2, 4, 5], [2, 4, 5, 8]), layout([0, 4], [4, 8])
    assert align(sharer, receiver, "longest").tolist() == [0, 3]
    assert align(sharer, receiver, "first").tolist() == [0, 2]


# Different texts


def placed(theirs: tuple[str, Example], own: tuple[str, Example], chat: bool = False) -> tuple[list[int], list[int]]:
    """The index, and of each receiver token the line that it and its sharer token stand in, as pairs' differences."""
    (_, sharer), (_, receiver) = (layout(name, row, chat) for name, row in (theirs, own))
    said, read = (encoder(name, chat).contents(row) for name, row in (theirs, own))
    index = align_places(sharer, said, receiver, read)
    assert len(index) == len(receiver.pieces)
    assert ((index >= 0) & (index < len(sharer.pieces))).all()
    assert (np.diff(index) >= 0).all()
    lines = [
        [(piece, line_of(texts, piece, end)) for piece, end in zip(at.pieces, at.ends, strict=True)]
        for at, texts in ((sharer, said), (receiver, read))
    ]
    there = set(lines[0])
    differing = [at for at, mine in enumerate(lines[1]) if mine in there and lines[0][index[at]] != mine]
    return index.tolist(), differing


def line_of(contents: list[str], piece: int, end: int) -> int:
    return contents[piece // 2][: max(end - 1, 0)].count("\n") if piece % 2 else 0


lines = st.lists(st.text(st.sampled_from("ab Mé🧪 .?"), min_size=1, max_size=12).map(str.strip), min_size=4, max_size=4)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("chat", [False, True])
@settings(max_examples=40, deadline=None)
@given(theirs=lines, own=lines)
def test_of_different_texts_a_line_goes_to_the_same_line(
    pair: tuple[str, str], chat: bool, theirs: list[str], own: list[str]
) -> None:
    rows = [example("\n".join(["Who?", *text, "Answer."])) for text in (theirs, own)]
    _, differing = placed((pair[0], rows[0]), (pair[1], rows[1]), chat)
    assert not differing


@pytest.mark.parametrize("name", ["bytes", "words", "characters"])
@pytest.mark.parametrize("chat", [False, True])
@settings(max_examples=40, deadline=None)
@given(text=texts.filter(str.strip), said=texts.filter(str.strip))
def test_a_text_in_its_own_place_is_itself(name: str, chat: bool, text: str, said: str) -> None:
    row = example(f"{text}\n{said}", (said, text))
    index, _ = placed((name, row), (name, row), chat)
    assert index == list(range(len(index)))


def test_within_a_line_tokens_go_by_relative_place() -> None:
    said, read = ("x", example("ab\nabcde\nabc")), ("x", example("abcd\nabc\nabc"))
    theirs, own = ("characters", said[1]), ("characters", read[1])
    # Lines with their breaks: 3, 6 and 3 characters there, 5, 4 and 3 here.
    assert placed(theirs, own)[0] == [0, 0, 1, 2, 2, 3, 5, 6, 8, 9, 10, 11]


def test_contents_of_another_number_of_lines_go_by_relative_place() -> None:
    theirs, own = ("characters", example("ab\nab\nabc")), ("characters", example("abcd"))
    assert placed(theirs, own)[0] == [0, 3, 5, 8]


def test_of_chats_of_different_length_the_last_turns_correspond() -> None:
    short, long = example("And now?"), example("And then?", ("Hello", "Hi there"), ("Well", "Yes"))
    for own, other in ((short, long), (long, short)):
        (_, sharer), (_, receiver) = (layout("bytes", row, True) for row in (other, own))
        index = align_places(
            sharer, encoder("bytes", True).contents(other), receiver, encoder("bytes", True).contents(own)
        )
        assert (np.diff(index) >= 0).all()
        for back in range(3):  # the last question and what stands around it
            rows = receiver.pieces == receiver.pieces[-1] - back
            if receiver.pieces[-1] > back:
                assert set(sharer.pieces[index[rows]]) == {sharer.pieces[-1] - back}
        assert set(sharer.pieces[index[receiver.pieces == 0]]) == {0}
