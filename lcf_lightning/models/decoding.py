"""Decoding on a cache by transformers' ``generate``: greedy batches, or answers with all of its options."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from lcf_lightning.errors import SettingError, reason
from lcf_lightning.models.cache import KVCache, cache_argument, from_transformers, to_transformers
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.options import Decoding
from lcf_lightning.stopwatch import Stopwatch


@dataclass(frozen=True)
class Answer:
    """What a receiver answered; ``str(answer)`` is its text.

    Attributes:
        text: What was generated up to `PromptSettings.stop`, without special tokens and the blanks around it.
        prompt_tokens: Tokens of the receiver's own prompt, without those that a message puts before it (pooler=prefix).
        new_tokens: Tokens generated, the end of sequence included.
        milliseconds: By stage, of the whole batch: ``receiver_prefill``, ``fuse``, ``first_token``, ``rest_of_answer``.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    milliseconds: dict[str, float]

    def __str__(self) -> str:
        return self.text


class Decoder:
    """Decodes on a cache, which stays as it is.

    Args:
        reader: The model that made the cache.
        cache: Its cache of all prompt tokens but the last, and of those that a message put before them.
        ids: ``[batch, tokens]``, int64: all prompt tokens but the last, padded on the left.
        mask: ``[batch, tokens]``, bool, False on padding.
        last: ``[batch, 1]``, int64: the last prompt token; of one prompt, without beams, all that is not read yet.
        watch: Notes the stages, after those that it has noted already.
        decoding: How.
        check: Raises where no answer may be given; called when the device has been asked for one, or for its first
            piece, so that a look at it keeps nobody waiting.

    Attributes:
        ended: Gives a single answer's new tokens, and what was read by then: all but their last. None after beams.
    """

    def __init__(
        self,
        reader: FrozenModel,
        cache: KVCache,
        ids: Tensor,
        mask: Tensor,
        last: Tensor,
        watch: Stopwatch,
        decoding: Decoding,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.reader, self.watch, self.decoding, self.check = reader, watch, decoding, check
        self.prompt_mask = torch.cat([mask, torch.ones_like(last, dtype=torch.bool)], dim=1)
        self.ended: Callable[[], tuple[list[int], KVCache] | None] = lambda: None
        # `generate` counts a token id for each that the cache holds: for a message's one that the prompt holds, so that
        # penalties see none that it does not.
        added = cache.mask.shape[1] - mask.shape[1]
        self.ids = torch.cat([last[:, -1:].expand(-1, added), ids, last], dim=1)
        self.mask = torch.cat([cache.mask, torch.ones_like(last, dtype=torch.bool)], dim=1)
        # `generate` repeats the prompt for every beam, but not a cache that it is given.
        rows = torch.arange(len(last), device=last.device).repeat_interleave(decoding.config.num_beams or 1)
        self.cache = cache if len(rows) == len(last) else cache.rows(rows)

    @property
    def prompt_tokens(self) -> list[int]:
        """How many tokens each prompt has."""
        return [int(count) for count in self.prompt_mask.sum(1).tolist()]

    def answers(self) -> list[Answer]:
        """The whole answers."""
        ids = self._generate(_Progress(self.watch))
        self.check()
        return self._answers(ids)

    def stream(self) -> Generator[str, None, Answer]:
        """The pieces of a single answer as they come; the whole is the generator's return value.

        Whoever stops listening ends the decoding.
        """
        # `generate` pushes; a thread turns that into something to pull at.
        streamer = TextIteratorStreamer(self.reader.tokenizer, skip_prompt=True, skip_special_tokens=True)
        progress = _Progress(self.watch)
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(self._generate, progress, streamer)
            future.add_done_callback(lambda _: streamer.on_finalized_text("", stream_end=True))  # also after an error
            try:
                self.check()
                yield from _until(streamer, self.decoding.stop)
            finally:
                progress.stopped.set()
        return self._answers(future.result())[0]

    def _generate(self, progress: _Progress, streamer: TextIteratorStreamer | None = None) -> Tensor:
        others = dict(self.decoding.others)
        past = to_transformers(self.reader.model, self.cache)
        try:
            ids = _generate(
                self.reader, past, self.ids, self.mask, self.decoding.config, progress,
                stopping_criteria=[*(others.pop("stopping_criteria", None) or ()), progress],
                streamer=streamer,
                tokenizer=self.reader.tokenizer,  # for `stop_strings`
                **others,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise SettingError(f"decoding options {self.decoding.names}: {reason(error)}") from error
        if len(self.cache.mask) == 1:
            seen = torch.cat([self.mask, torch.ones_like(ids[:, 1:], dtype=torch.bool)], dim=1)
            self.ended = lambda: (ids[0].tolist(), from_transformers(self.reader.model, past, seen))
        return ids

    def _answers(self, ids: Tensor) -> list[Answer]:
        answers, milliseconds = [], self.watch.milliseconds
        for row, prompt_tokens in zip(ids.tolist(), self.prompt_tokens, strict=True):
            while row and row[-1] == self.decoding.pad_id:  # others of the batch went on
                row.pop()
            said = cut(str(self.reader.tokenizer.decode(row, skip_special_tokens=True)), self.decoding.stop)
            answers.append(Answer(said, prompt_tokens, len(row), dict(milliseconds)))
        return answers


def cut(text: str, stop: str | None) -> str:
    """What a model generated, up to ``stop`` where there is one, and without the blanks around it: its answer."""
    text = text.strip()
    return text if stop is None else text.partition(stop)[0].strip()


def _until(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """``pieces`` as they come, up to ``stop``; as many characters are held back as may be a part of it."""
    text, given, held = "", 0, len(stop or " ") - 1
    for piece in pieces:
        text = text + piece if text else piece.lstrip()
        end = -1 if stop is None else text.find(stop)
        ready = len(text) - held if end < 0 else end
        if ready > given:
            yield text[given:ready]
            given = ready
        if end >= 0:
            return
    if text[given:]:
        yield text[given:]


@torch.no_grad()
def generate(
    reader: FrozenModel,
    cache: KVCache,
    last: Tensor,
    max_new_tokens: int,
    watch: Stopwatch | None = None,
    static_size: int | None = None,
) -> Tensor:
    """Decode a batch greedily on a cache, which stays as it is.

    Args:
        reader: The model that made the cache.
        cache: Its cache of all prompt tokens but the last.
        last: ``[batch, 1]``, int64: the last prompt token.
        max_new_tokens: At least 1.
        watch: Notes the stages ``first_token`` and ``rest_of_answer``.
        static_size: Decode on a copy of the cache that has room for so many tokens from the start, at least as many as
            prompt and answer have: on a GPU transformers compiles its decoding step then, once for each size. Null for
            a cache that grows. Has no effect on models with layers that slide.

    Returns:
        ``[batch, ≤ max_new_tokens]``, int64; all after a row's end is the tokenizer's end of sequence.
    """
    stops = reader.stop_ids
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=stops[0]
    )
    ids = last.expand(-1, cache.mask.shape[1] + 1)  # one for each token of the cache: they are counted, not read
    mask = torch.cat([cache.mask, torch.ones_like(last, dtype=torch.bool)], dim=1)
    progress = _Progress(watch or Stopwatch(reader.device))
    past = to_transformers(reader.model, cache, static_size)
    return _generate(reader, past, ids, mask, config, progress, stopping_criteria=[progress])


def _generate(
    reader: FrozenModel,
    past: Any,
    ids: Tensor,
    mask: Tensor,
    config: GenerationConfig,
    progress: _Progress,
    **options: Any,
) -> Tensor:
    """The new tokens of transformers' ``generate``, which fills ``past``; ``ids`` and ``mask`` begin with its own."""
    with torch.autocast(ids.device.type, enabled=False):  # a frozen model has a dtype of its own
        generated: Tensor = reader.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask.long(),
            generation_config=config,
            **{cache_argument(type(reader.model)): past},
            **options,
        )
    progress.end()
    return generated[:, ids.shape[1] :]


class _Progress(StoppingCriteria):
    """Looks on at every step: notes the first token's time, and ends the decoding when it is told to."""

    def __init__(self, watch: Stopwatch) -> None:
        self.stopped = threading.Event()
        self._watch, self.last = watch, watch.now()  # when the last stage ended

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if "first_token" not in self._watch:
            now = self._watch.now()
            self._watch.note("first_token", self.last, now)
            self.last = now
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)

    def end(self) -> None:
        """Note the time since the first token."""
        self._watch.note("rest_of_answer", self.last, self._watch.now())
