"""`ArmCaches`: what the arms of one batch share; `Reading`: what an answer is read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.tokens import Prompt, Tokens
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.text_baseline import reading_prompts, text_prompts, write_texts
from lcf_lightning.link import Link, Role
from lcf_lightning.models.cache import KVCache
from lcf_lightning.writer import Writer

Reads = Callable[[Example], tuple[Passage, ...]]
"""From an example to the passages that one model reads of it."""


class Reading(NamedTuple):
    """What an answer is read from.

    Attributes:
        cache: A cache of all prompt tokens but the last, and but the question.
        last: ``[batch, 1]``, int64: the last prompt token.
        question: What is read on that cache before the last token; None where nothing is (``prompts.reread``).
        texts: What the sharer wrote in words; in the T2T arms only.
        cut: Whether the budget ended each of these texts.
        role: Whose cache this is, who answers.
        partners: For each example the one whose message this was, where it was another's.
    """

    cache: KVCache
    last: Tensor
    question: Tokens | None = None
    texts: tuple[str, ...] = ()
    cut: tuple[bool, ...] = ()
    role: Role = "receiver"
    partners: tuple[Example, ...] = ()

    def asked(self, link: Link) -> Reading:
        """The same when the question has been read; gradients flow into the cache."""
        if self.question is None:
            return self
        return self._replace(cache=link.read_on(self.cache, self.question), question=None)


class ArmCaches:
    """The receiver's caches under the arms for one batch; what several arms share is made once.

    Args:
        link: The pair and the adapter.
        writer: Its prompts.
        batch: An evaluation batch.
    """

    def __init__(self, link: Link, writer: Writer, batch: Batch) -> None:
        self.link, self.writer, self.batch = link, writer, batch
        self.collator = writer.collator(batch.prompts)
        self._budget, self._text_ids = 0, torch.empty(len(batch), 0, dtype=torch.long)  # the longest text so far
        self._read: tuple[object, Reading] | None = None  # the last text and its reading, which the next arm may share

    @cached_property
    def own_context(self) -> Reading:
        """The receiver reads its own passages."""
        return Reading(self.link.read_receiver(self.batch.receiver), self.batch.last, self.batch.question)

    @cached_property
    def sharer(self) -> KVCache:
        """The sharer's cache of all that it reads."""
        return self.link.read_sharer(self.batch.sharer)

    @cached_property
    def summaries(self) -> Summaries:
        """This example's message."""
        return self.link.pool(self.sharer, self.batch.index)

    @cached_property
    def message(self) -> Reading:
        """The receiver reads its own passages and this example's message."""
        return self.receives(self.summaries)

    @cached_property
    def first_tokens(self) -> Tensor:
        """Log probabilities of the answer's first token with the receiver's own passages, ``[batch, vocabulary]``."""
        ids, mask = self.batch.answers[:, :1], self.batch.answer_mask[:, :1]
        cache = self.own_context.asked(self.link).cache
        return self.link.continuation(cache, self.batch.last, ids, mask).logits()[:, 0].log_softmax(-1)

    @property
    def partners(self) -> tuple[Example, ...]:
        """For each example the one whose message is the wrong message for it.

        Raises:
            SettingError: If the batch has no partners, as those of training.
        """
        if not self.batch.partners:
            raise SettingError("batch.partners is missing: this arm needs batches of the evaluation loaders.")
        return self.batch.partners

    @cached_property
    def partner_message(self) -> Summaries:
        """The message of another example: each one's partner; errors as `partners`."""
        return self.message_of(self.partners, lambda example: example.sharer_reads)

    def receives(self, message: Summaries, reading: Reading | None = None) -> Reading:
        """The receiver reads its own passages, or what ``reading`` says, and some message."""
        reading = reading or self.own_context
        return reading._replace(cache=self.link.fuse(reading.cache, message, question=reading.question))

    def receives_partners(self, reading: Reading | None = None) -> Reading:
        """The receiver reads its own passages, or what ``reading`` says, and another example's message."""
        return self.receives(self.partner_message, reading)._replace(partners=self.batch.partners)

    def message_of(self, examples: Sequence[Example], passages: Reads) -> Summaries:
        """What the sharer sends where it reads ``passages`` of other examples."""
        tokens, index = self.collator.message_of(examples, passages, self.batch.examples)
        device = self.link.sharer.device
        return self.link.pool(self.link.read_sharer(tokens.to(device)), index.to(device))

    def reads(self, passages: Reads) -> Reading:
        """The receiver reads ``passages`` of each example as text, however long."""

        def read() -> Reading:
            prompt = passages_prompts(self.link, self.writer, self.batch, passages)
            return Reading(self.link.read_receiver(prompt.ahead), prompt.last, prompt.question)

        return self._once(passages, read)

    def _once(self, text: object, read: Callable[[], Reading]) -> Reading:
        """The reading of a text, which is not read again where it was the last one."""
        if self._read is None or self._read[0] != text:
            self._read = (text, read())
        return self._read[1]

    def write(self, budget: int) -> Tensor:
        """The sharer's text, ``budget`` tokens of it or more; a smaller budget's is the beginning of a larger's."""
        if budget > self._budget:
            tokens, last = text_prompts(self.link, self.writer, self.batch.prompts, self.batch.examples)
            self._budget = budget
            self._text_ids = write_texts(self.link, self.link.read_sharer(tokens), last, budget)
        return self._text_ids

    def reads_text(self, budget: int) -> Reading:
        """The receiver reads up to ``budget`` tokens of the sharer's text, and its own passages."""
        ids = self.write(budget)[:, :budget]
        stops = torch.tensor(self.link.sharer.stop_ids, device=ids.device)
        texts = tuple(self.writer.texts(ids, "sharer"))

        def read() -> Reading:
            prompt = reading_prompts(self.link, self.writer, self.batch.prompts, self.batch.examples, texts)
            return Reading(self.link.read_receiver(prompt.ahead), prompt.last, prompt.question, texts)

        return self._once(texts, read)._replace(cut=tuple((~torch.isin(ids, stops).any(1)).tolist()))


def passages_prompts(link: Link, writer: Writer, batch: Batch, passages: Reads) -> Prompt:
    """``passages`` of each example and the question, for the receiver."""
    encoder = writer.encoder(batch.prompts, "receiver").unlimited()
    encoded = [encoder.prompt(passages(row), row.question) for row in batch.examples]
    return encoder.split(encoded, link.receiver.device)
