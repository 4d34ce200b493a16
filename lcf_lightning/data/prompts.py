"""From an example to token ids, span ids and masks, for each of the two models."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, count

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.alignment import Layout
from lcf_lightning.data.controls import Said, encode, filled
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.spans import parse_span_mode
from lcf_lightning.data.templates import rendered
from lcf_lightning.data.tokens import Encoded, Prompt, split_question
from lcf_lightning.errors import DataError, SettingError

_NONE, _QUESTION = -1, -2  # labels of text that belongs to no span, and of the question before it is numbered
History = Sequence[tuple[str, str]]
"""Earlier turns of a chat: what the user said and what was answered."""
Place = tuple[int, int, int]
"""Where a token stands: its piece of the text, and the first character there and one past the last (`Layout`)."""
Earlier = Sequence[tuple[str | tuple[str, ...], str]]
"""The same, where a turn may have been a prompt of its own: then it is all that this held (`PromptEncoder.said`)."""


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts for one model.

    Attributes:
        tokenizer: The model's fast tokenizer.
        settings: How prompts are written.
        limit: The setting that limits a prompt's tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: PromptSettings
    limit: str

    def __post_init__(self) -> None:
        for name in ("chat", "text_chat") if self.limit == "max_sharer_tokens" else ("chat",):  # the sharer is asked
            if getattr(self.settings, name) and not self.tokenizer.chat_template:
                whose = self.tokenizer.name_or_path
                raise SettingError(f"{name}=true needs a tokenizer with a chat template; that of {whose} has none.")

    @property
    def pad_id(self) -> int:
        tokenizer = self.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def prompt(
        self, passages: Sequence[Passage], question: str | None, text: str | None = None, history: Earlier = ()
    ) -> Encoded:
        """The prompt of some passages and, where given, a question, another model's text and earlier turns.

        Raises:
            DataError: If the prompt without any context exceeds the limit; a question is never cut.
        """
        return self._limited(self._encoded(self._segments(passages, question, text), history)[0])

    def said(self, passages: Sequence[Passage], question: str) -> tuple[str, ...]:
        """The user's side of a turn as a prompt holds it, in stretches; those from outside are `Said`."""
        return tuple(text for text, _ in self._segments(passages, question))

    def shared_prompt(self, example: Example) -> tuple[Encoded, Layout]:
        """The prompt of an example that both models read alike, without a limit, and where its tokens stand."""
        segments = self._segments(example.shared, example.question)
        encoded, places = self._encoded(segments, example.history)
        numbered = replace(encoded, spans=_numbered(encoded.spans, max([*encoded.spans, _NONE]) + 1))
        return numbered, Layout(*np.array(places, dtype=np.int64).reshape(-1, 3).T)

    def fits(self, prompt: Encoded, answer: str, limit: int | None) -> bool:
        """Whether a prompt has at most ``limit`` tokens and, with its answer, `max_total_tokens`."""
        tokens, total = len(prompt.ids), self.settings.max_total_tokens
        return (limit is None or tokens <= limit) and (total is None or tokens + len(self.answer(answer)) <= total)

    def contents(self, example: Example) -> list[str]:
        """The texts of an example that both models read: what stands in the odd pieces of its prompt's `Layout`."""
        said = self._contents(self._segments(example.shared, example.question), example.history)[1]
        return [*said, *([self.settings.answer_prefix] if self.settings.answer_prefix else [])]

    def text_prompt(self, passages: Sequence[Passage], question: str, history: Earlier = ()) -> Encoded:
        """The prompt that asks for a text about some passages (T2T)."""
        shown = question if self.settings.share_question else ""
        request = filled(self.settings.text_request, "{question}", shown, _QUESTION)
        settings = replace(self.settings, chat=self.settings.chat or self.settings.text_chat, answer_prefix=None)
        asked = replace(self, settings=settings)
        return asked._limited(asked._encoded([*self._context(passages), *request], history)[0])

    def split(self, prompts: Sequence[Encoded], device: torch.device | str = "cpu") -> Prompt:
        """A batch of a receiver's prompts, as what it reads before a message, after it, and last."""
        return split_question(prompts, self.pad_id, self.settings.reread, device)

    def unlimited(self) -> PromptEncoder:
        """This encoder without its token limit."""
        return replace(self, settings=replace(self.settings, max_sharer_tokens=None, max_receiver_tokens=None))

    def _segments(
        self, passages: Sequence[Passage], question: str | None, text: str | None = None
    ) -> list[tuple[str, int]]:
        """The last turn as stretches of text, each with its label."""
        told = [] if text is None else filled(self.settings.text, "{text}", text, _NONE)
        ending = [] if question is None else filled(self.settings.question, "{question}", question, _QUESTION)
        own = self._context(passages)
        return [*own, *told, *ending] if self.settings.text_place == "after" else [*told, *own, *ending]

    def _encoded(self, segments: list[tuple[str, int]], history: Earlier) -> tuple[Encoded, list[Place]]:
        """A chat whose last turn is ``segments``, whose question is not numbered yet, and where its tokens stand."""
        segments, contents = self._contents(segments, history)
        text = "".join(segment for segment, _ in segments)
        labels = [label for _, label in segments]
        begun = [self.settings.answer_prefix, ""] if self.settings.answer_prefix and _QUESTION in labels else []
        pieces, stripped = [*self._wrapped(contents), *begun], text.find(contents[-1])
        ids, places = self._tokenized(pieces, _said(pieces, contents, segments, stripped))
        ends = list(accumulate(len(segment) for segment, _ in segments))
        after = _QUESTION if _QUESTION in labels else _NONE  # the label of what a chat template adds behind
        spans = []
        for piece, start, end in places:
            last = piece - (2 * len(contents) - 1)  # 0 in the last content, above 0 behind it
            if start == end or last < 0:  # a special token, an earlier turn, or a template's head
                spans.append(_NONE)
            else:
                spans.append(after if last > 0 else labels[bisect_right(ends, end - 1 + stripped)])
        ahead = 2 * len(contents) + 1  # pieces, without what begins the answer
        return Encoded(
            ids, self._windows(spans), begun=sum(piece >= ahead for piece, _, _ in places) if begun else 0
        ), places

    def _contents(self, segments: list[tuple[str, int]], history: Earlier) -> tuple[list[tuple[str, int]], list[str]]:
        """The last turn's segments, and the texts of all turns; without a chat template all turns are one."""
        turns = ["".join(part) for part in chain(*history)]
        if not self.settings.chat:
            segments = [segment for turn in history for segment in self._turn(*turn)] + segments
        text = "".join(segment for segment, _ in segments)
        return segments, [part.strip() for part in [*turns, text]] if self.settings.chat else [text]

    def _tokenized(self, pieces: list[str], said: Sequence[tuple[int, int]]) -> tuple[list[int], list[Place]]:
        """Token ids of a text in pieces, and where they stand in them; a token belongs where its last character is."""
        ids, offsets = encode(self.tokenizer, "".join(pieces), said, special=not self.settings.chat)
        borders = [0, *accumulate(map(len, pieces))]
        places, here = [], (0, 0, 0)
        for start, end in offsets:
            if end > start:
                piece = bisect_right(borders, end - 1) - 1
                here = (piece, max(start - borders[piece], 0), end - borders[piece])
                places.append(here)
            else:  # a special token, or a blank that the tokenizer leaves out of offsets
                places.append((here[0], here[2], here[2]))
        return ids, places

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer as it follows a prompt, with the end-of-sequence token, up to the limit."""
        return [*self.candidate(text), self.tokenizer.eos_token_id][: self.settings.max_answer_tokens]

    def candidate(self, text: str) -> list[int]:
        """Token ids of a possible answer, whole and without an end."""
        content, begin = self.settings.answer.replace("{answer}", text), self.settings.answer.index("{answer}")
        if self.settings.chat and not self.settings.answer_prefix:
            begin, content = begin - len(content) + len(content.lstrip()), content.lstrip()
        return encode(self.tokenizer, content, [(begin, begin + len(text))], special=False)[0]

    def _turn(self, said: str | tuple[str, ...], answer: str) -> list[tuple[str, int]]:
        """An earlier turn where there is no chat template."""
        whole = [(stretch, _NONE) for stretch in said]
        asked = filled(self.settings.question, "{question}", said, _NONE) if isinstance(said, str) else whole
        return [*asked, *filled(self.settings.answer, "{answer}", answer, _NONE), (self.settings.separator, _NONE)]

    def _context(self, passages: Sequence[Passage]) -> list[tuple[str, int]]:
        """The passages as stretches of text, each with its span or `_NONE`."""
        before, after = self.settings.context.split("{passages}")
        by_sentence = parse_span_mode(self.settings.spans)[0] == "sentence"
        segments = [(before, _NONE)] if passages else []
        sentences = 0
        for index, passage in enumerate(passages):
            for place, sentence in enumerate(passage, start=1):
                tail = self.settings.separator if place == len(passage) else ""
                label = sentences if by_sentence else index
                segments += [(Said(sentence), label), (tail, label)]
                sentences += 1
        if passages:
            segments.append((after, _NONE))
        return segments

    def _wrapped(self, contents: list[str]) -> list[str]:
        """Turns as the model reads them: by turns what its chat template writes and what was said."""
        if not self.settings.chat:
            return ["", *contents, ""]
        marks = [f"\x02{number}\x03" for number in range(len(contents))]
        pieces = re.split("\x02\\d+\x03", self._rendered(marks))
        if len(pieces) == len(contents) + 1:
            wrapped = [*chain(*zip(pieces, contents, strict=False)), pieces[-1]]
            if "".join(wrapped) == self._rendered(contents):
                return wrapped
        raise DataError("chat=true: the tokenizer's chat template changes the text it is given; use chat=false.")

    def _rendered(self, contents: list[str]) -> str:
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": content}
            for number, content in enumerate(contents)
        ]
        return rendered(self.tokenizer, turns)

    def _windows(self, spans: list[int]) -> list[int]:
        """In window mode, the context's tokens counted off by windows; else ``spans`` as they are."""
        kind, size = parse_span_mode(self.settings.spans)
        if kind != "window":
            return spans
        counter = count()
        return [span if span < 0 else next(counter) // size for span in spans]

    def _limited(self, prompt: Encoded) -> Encoded:
        """Drop whole spans from the end of the context until the limit holds; number the question as the last span."""
        kept, last = list(zip(prompt.ids, prompt.spans, strict=True)), max([*prompt.spans, _NONE])
        dropped, limit = 0, getattr(self.settings, self.limit)
        while limit is not None and len(kept) > limit:
            if last < 0:
                raise DataError(
                    f"{self.limit}={limit} is too small: a prompt without any context has {len(kept)} tokens."
                )
            kept = [(token, span) for token, span in kept if span != last]
            last, dropped = last - 1, dropped + 1
        spans = _numbered([span for _, span in kept], last + 1)
        return Encoded([token for token, _ in kept], spans, dropped, prompt.begun)


def _numbered(spans: list[int], question: int) -> list[int]:
    """Spans of which the question has its number."""
    return [question if span == _QUESTION else span for span in spans]


def _said(
    pieces: Sequence[str], contents: Sequence[str], segments: Sequence[tuple[str, int]], stripped: int
) -> list[tuple[int, int]]:
    """Where a chat in pieces is from outside: in all earlier turns, and in those segments of the last that are."""
    borders = [0, *accumulate(map(len, pieces))]
    said = [(borders[2 * turn + 1], borders[2 * turn + 2]) for turn in range(len(contents) - 1)]
    here = borders[2 * len(contents) - 1] - stripped
    for segment, _ in segments:
        if isinstance(segment, Said):
            said.append((here, here + len(segment)))
        here += len(segment)
    return said
