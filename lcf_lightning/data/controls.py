"""Control tokens, such as those that end a turn: only templates and settings write them, never what somebody says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase


class Said(str):
    """A text from outside: a passage, a question, an answer, another model's text."""

    __slots__ = ()


_CONTROLS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, re.Pattern[str] | None]] = WeakKeyDictionary()


def filled(template: str, slot: str, text: str, label: int) -> list[tuple[str, int]]:
    """A template with a text in its slots, as stretches of one label, of which only the text is `Said`."""
    first, *others = template.split(slot)
    segments: list[tuple[str, int]] = [(first, label)]
    for other in others:
        segments += [(Said(text), label), (other, label)]
    return segments


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the text of a special token, or of another that the chat template writes; None where there is none.

    Found once for a tokenizer, as long as no token is added: some have thousands.
    """
    added = tokenizer.added_tokens_decoder
    count, found = _CONTROLS.get(tokenizer, (-1, None))
    if count != len(added):
        template = str(tokenizer.chat_template or "")
        known = {each.content for each in added.values() if each.special or each.content.strip() in template}
        texts = sorted((text for text in known if len(text.strip()) > 1), key=len, reverse=True)
        found = re.compile("|".join(map(re.escape, texts))) if texts else None
        _CONTROLS[tokenizer] = len(added), found
    return found


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
    special: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their offsets; a control token's text that lies in what was said is read as any other text.

    It is cut behind its first character, and both halves are encoded by themselves.

    Args:
        tokenizer: Encodes.
        text: The text.
        said: Where it is from outside, as places of characters.
        special: Whether to add what the tokenizer begins and ends a text with.
    """
    cuts, control = [], control_tokens(tokenizer) if said else None
    if control is not None:
        places = _places(control, text)
        cuts = [start + 1 for start, end in places if any(start < stop and begin < end for begin, stop in said)]
    if not cuts:
        return _plain(tokenizer, text, special)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found, where = _plain(tokenizer, text[begin:end], False)
        ids += found
        offsets += [(start + begin, stop + begin) for start, stop in where]
    ahead, behind = _around(tokenizer) if special else ([], [])
    return [*ahead, *ids, *behind], [(0, 0)] * len(ahead) + offsets + [(0, 0)] * len(behind)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer begins and ends a text with."""
    alone, whole = (_plain(tokenizer, "a", special)[0] for special in (False, True))
    at = next(place for place in range(len(whole)) if whole[place : place + len(alone)] == alone)
    return whole[:at], whole[at + len(alone) :]


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
