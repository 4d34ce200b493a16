"""Control tokens, such as those that end a turn: only templates and settings write them, never what somebody says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase


class Said(str):
    """A text from outside: a passage, a question, an answer, another model's text."""

    __slots__ = ()


def filled(template: str, slot: str, text: str, label: int) -> list[tuple[str, int]]:
    """A template with a text in its slots, as stretches of one label, of which only the text is `Said`."""
    first, *others = template.split(slot)
    segments: list[tuple[str, int]] = [(first, label)]
    for other in others:
        segments += [(Said(text), label), (other, label)]
    return segments


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the text of a special token; None where a tokenizer has none."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = sorted((text for text in special if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _places(control: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Where the texts of control tokens stand, also those that overlap."""
    found = control.search(text)
    while found is not None:
        yield found.span()
        found = control.search(text, found.start() + 1)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    said: Sequence[tuple[int, int]],
    control: re.Pattern[str] | None,
    special: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their offsets; a control token's text that lies in what was said is read as any other text.

    It is cut behind its first character, and both halves are encoded by themselves.

    Args:
        tokenizer: Encodes.
        text: The text.
        said: Where it is from outside, as places of characters.
        control: What `control_tokens` gives.
        special: Whether to add what the tokenizer begins a text with.
    """
    cuts = []
    if control is not None and said:
        places = _places(control, text)
        cuts = [start + 1 for start, end in places if any(start < stop and begin < end for begin, stop in said)]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found, where = _plain(tokenizer, text[begin:end], special and not begin)
        ids += found
        offsets += [(start + begin, stop + begin) for start, stop in where]
    return ids, offsets


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, and the characters that each stands on.

    By the tokenizer's own backend where that does nothing else: what transformers puts around it costs thrice as
    much for a short prompt.
    """
    backend = tokenizer.backend_tokenizer
    if backend.padding is None and backend.truncation is None and not tokenizer.split_special_tokens:
        encoding = backend.encode(text, add_special_tokens=special)
        return encoding.ids, encoding.offsets
    usual = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return usual["input_ids"], usual["offset_mapping"]
