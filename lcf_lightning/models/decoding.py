"""Answers on an edited cache, with all of transformers' decoding options: whole, or piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from lcf_lightning.errors import SettingError, reason
from lcf_lightning.models.cache import KVCache, cache_argument
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.stopwatch import Stopwatch

# What a channel decides itself, and what would change how many answers there are, or what they are.
_RESERVED = {
    "inputs", "input_ids", "inputs_embeds", "attention_mask", "past_key_values", "cache", "use_cache", "streamer",
    "generation_config", "num_return_sequences", "return_dict_in_generate", "max_length", "eos_token_id",
    "pad_token_id", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a receiver answered; ``str(answer)`` is its text.

    Attributes:
        text: All that was generated, without special tokens and the blanks around it.
        prompt_tokens: Tokens of the receiver's own prompt; a message adds none.
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
        cache: Its cache of all prompt tokens but the last.
        ids: ``[batch, tokens]``, int64: all prompt tokens, padded on the left.
        watch: Notes the stages, after those that it has noted already.
        max_new_tokens: At least 1.
        options: Decoding options of transformers' ``generate``; greedy where they ask for nothing else.

    Raises:
        SettingError: If an option is unknown, reserved or refused by transformers.
    """

    def __init__(
        self,
        reader: FrozenModel,
        cache: KVCache,
        ids: Tensor,
        watch: Stopwatch,
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> None:
        self.reader, self.ids, self.watch = reader, ids, watch
        self.mask = torch.cat([cache.mask, torch.ones_like(cache.mask[:, :1])], dim=1)
        self.given = sorted(options)
        self.config, self.others = decoding_options(reader, max_new_tokens, options)
        # `generate` repeats the prompt for every beam, but not a cache that it is given.
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(options.get("num_beams", 1))
        self.cache = cache if len(rows) == len(ids) else cache.rows(rows)

    def answers(self) -> list[Answer]:
        """The whole answers."""
        return self._answers(self._generate(_Progress(self.watch)))

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
                yield from (piece for piece in streamer if piece)
            finally:
                progress.stopped.set()
        return self._answers(future.result())[0]

    def _generate(self, progress: _Progress, streamer: TextIteratorStreamer | None = None) -> Tensor:
        others = dict(self.others)
        criteria = [*(others.pop("stopping_criteria", None) or ()), progress]
        try:
            ids: Tensor = self.reader.model.generate(  # type: ignore[operator]
                self.ids,
                attention_mask=self.mask.long(),
                generation_config=self.config,
                stopping_criteria=criteria,
                streamer=streamer,
                tokenizer=self.reader.tokenizer,  # for `stop_strings`
                **{cache_argument(type(self.reader.model)): self.cache.to_transformers()},
                **others,
            )
        except (ValueError, TypeError) as error:
            raise SettingError(f"decoding options {self.given}: {reason(error)}") from error
        self.watch.milliseconds["rest_of_answer"] = self.watch.now() - progress.last
        return ids[:, self.ids.shape[1] :]

    def _answers(self, ids: Tensor) -> list[Answer]:
        texts: list[str] = self.reader.tokenizer.batch_decode(ids, skip_special_tokens=True)
        stops = torch.isin(ids, torch.tensor(self.reader.stop_ids, device=ids.device))
        ended = stops.long().cumsum(1) - stops.long() > 0  # behind a row's first end of sequence
        return [
            Answer(text.strip(), int(read), int(written), self.watch.milliseconds)
            for text, read, written in zip(texts, self.mask.sum(1), (~ended).sum(1), strict=True)
        ]


class _Progress(StoppingCriteria):
    """Looks on at every step: notes the first token's time, and ends the decoding when it is told to."""

    def __init__(self, watch: Stopwatch) -> None:
        self.stopped = threading.Event()
        self._watch, self.last = watch, watch.now()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if "first_token" not in self._watch.milliseconds:
            now = self._watch.now()
            self._watch.milliseconds["first_token"], self.last = now - self.last, now
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)


def decoding_options(
    reader: FrozenModel, max_new_tokens: int, options: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Options of ``generate`` as its config, and those that are no part of it.

    Raises:
        SettingError: If an option is unknown, reserved or out of range.
    """
    reserved = sorted(options.keys() & _RESERVED)
    if reserved:
        raise SettingError(f"decoding option {reserved[0]} is not to be set here.")
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    beams = options.get("num_beams", 1)
    if type(beams) is not int or beams < 1:
        raise SettingError(f"num_beams={beams!r} must be a whole number of at least 1.")
    known = vars(GenerationConfig()).keys()
    given = {"do_sample": False, "max_new_tokens": max_new_tokens} | {
        name: value for name, value in options.items() if name in known
    }
    try:
        config = GenerationConfig(
            **given,
            eos_token_id=list(reader.stop_ids),
            pad_token_id=reader.tokenizer.pad_token_id or reader.stop_ids[0],
        )
    except (ValueError, TypeError) as error:
        raise SettingError(f"decoding options {sorted(options)}: {reason(error)}") from error
    return config, {name: value for name, value in options.items() if name not in known}
