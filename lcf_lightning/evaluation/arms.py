"""The arms of an evaluation: ways to build the receiver's cache, all else equal (method.md §7)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lcf_lightning.adapter.parts import Summaries
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.data.tokens import Tokens, split_last
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.text_baseline import reading_prompts, text_prompts, write_texts
from lcf_lightning.link import Link, Role
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.geometry import KV
from lcf_lightning.writer import Writer


class Reading(NamedTuple):
    """What the receiver answers from.

    Attributes:
        cache: Its cache of all prompt tokens but the last.
        last: ``[batch, 1]``, int64: the last prompt token.
        texts: What the sharer wrote in words; in the T2T arms only.
        role: Whose cache this is, who answers.
    """

    cache: KVCache
    last: Tensor
    texts: tuple[str, ...] = ()
    role: Role = "receiver"


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
        self._budget, self._written = 0, torch.empty(len(batch), 0, dtype=torch.long)  # the longest text so far

    @cached_property
    def own_context(self) -> Reading:
        """The receiver reads its own passages."""
        return Reading(self.link.read_receiver(self.batch.receiver), self.batch.last)

    @cached_property
    def sharer(self) -> KVCache:
        """The sharer's cache of all that it reads."""
        return self.link.read_sharer(self.batch.sharer)

    @cached_property
    def sent(self) -> Summaries:
        """This example's message."""
        return self.link.pool(self.sharer, self.batch.index)

    @cached_property
    def message(self) -> Reading:
        """The receiver reads its own passages and this example's message."""
        return self.receives(self.sent)

    @cached_property
    def first_tokens(self) -> Tensor:
        """Log probabilities of the answer's first token with the receiver's own passages, ``[batch, vocabulary]``."""
        ids, mask = self.batch.answers[:, :1], self.batch.answer_mask[:, :1]
        return self.link.logits(self.own_context.cache, self.batch.last, ids, mask)[:, 0].log_softmax(-1)

    def receives(self, message: Summaries) -> Reading:
        """The receiver reads its own passages and some message."""
        return Reading(self.link.fuse(self.own_context.cache, message), self.batch.last)

    def sent_of(self, examples: Sequence[Example], passages: Callable[[Example], tuple[Passage, ...]]) -> Summaries:
        """What the sharer sends where it reads ``passages`` of other examples."""
        tokens, index = self.collator.message_of(examples, passages, self.batch.receiver)
        device = self.link.sharer.device
        return self.link.pool(self.link.read_sharer(tokens.to(device)), index.to(device))

    def reads(self, passages: Callable[[Example], tuple[Passage, ...]]) -> Reading:
        """The receiver reads ``passages`` of each example as text, however long."""
        read, last = passages_prompts(self.link, self.writer, self.batch, passages)
        return Reading(self.link.read_receiver(read), last)

    def write(self, budget: int) -> Tensor:
        """The sharer's text, ``budget`` tokens of it or more; a smaller budget's is the beginning of a larger's."""
        if budget > self._budget:
            read, last = text_prompts(self.link, self.writer, self.batch.prompts, self.batch.examples)
            self._budget = budget
            self._written = write_texts(self.link, self.link.read_sharer(read), last, budget)
        return self._written

    def reads_text(self, budget: int) -> Reading:
        """The receiver reads up to ``budget`` tokens of the sharer's text, then its own passages."""
        texts = self.writer.texts(self.write(budget)[:, :budget], "sharer")
        read, last = reading_prompts(self.link, self.writer, self.batch.prompts, self.batch.examples, texts)
        return Reading(self.link.read_receiver(read), last, tuple(texts))


def passages_prompts(
    link: Link, writer: Writer, batch: Batch, passages: Callable[[Example], tuple[Passage, ...]]
) -> tuple[Tokens, Tensor]:
    """``passages`` of each example and the question, for the receiver: all but the last token, and it."""
    encoder = writer.encoder(batch.prompts, "receiver").unlimited()
    encoded = [encoder.prompt(passages(row), row.question) for row in batch.examples]
    return split_last(encoded, encoder.pad_id, link.receiver.device)


def _mismatched(caches: ArmCaches) -> Reading:
    partners = caches.batch.partners
    if not partners:
        raise SettingError("batch.partners is missing: the mismatched arm needs batches of the evaluation loaders.")
    return caches.receives(caches.sent_of(partners, lambda example: example.sharer_reads))


def _sharer_alone(caches: ArmCaches) -> Reading:
    if caches.batch.prompts.sharers > 1:
        raise SettingError(f"sharers={caches.batch.prompts.sharers}: no sharer alone (arm sharer_alone) has read all.")
    if not caches.link.shared and not caches.batch.prompts.share_question:
        raise SettingError(
            "share_question=false: the sharer cannot answer alone (arm sharer_alone) what it never reads."
        )
    return Reading(caches.sharer.without_last(), caches.batch.sharer.ids[:, -1:], role="sharer")


def _zero(caches: ArmCaches) -> Reading:
    nothing = KV(*(torch.zeros_like(tensor) for tensor in caches.sent.kv))
    return caches.receives(caches.sent._replace(kv=nothing))


def _self(caches: ArmCaches) -> Reading:
    if not _something_to_send(caches.batch.prompts, caches.batch.examples):
        raise SettingError(
            "share_question=false: a receiver that has read nothing has nothing to send to itself (arm self)."
        )
    return caches.receives(caches.sent_of(caches.batch.examples, lambda example: example.receiver_reads))


def _noise(caches: ArmCaches) -> Reading:
    present = caches.batch.receiver.mask if caches.link.shared else caches.sent.present
    noise = moment_matched_noise(caches.sent.kv, caches.batch.ids, present)
    return caches.receives(caches.sent._replace(kv=noise))


TEXT_ARMS: dict[str, Callable[[Example], tuple[Passage, ...]]] = {
    "question_only": lambda example: (),
    "full_context": lambda example: example.shared + example.sharer + example.receiver,
}
_ARMS: dict[str, Callable[[ArmCaches], Reading]] = {
    "question_only": lambda caches: caches.reads(TEXT_ARMS["question_only"]),
    "own_context": lambda caches: caches.own_context,
    "full_context": lambda caches: caches.reads(TEXT_ARMS["full_context"]),
    "sharer_alone": _sharer_alone,
    "message": lambda caches: caches.message,
    "mismatched": _mismatched,
    "zero": _zero,
    "self": _self,
    "noise": _noise,
}
ARMS = (*tuple(_ARMS)[:3], "t2t_50", "t2t_100", "t2t_150", "t2t_200", *tuple(_ARMS)[4:])
"""The arms of an evaluation where the two read different texts; ``t2t_N`` is an arm for any N ≥ 1."""
SHARED_ARMS = ("sharer_alone", "own_context", "message", "mismatched", "zero", "noise")
"""The arms of an evaluation where both read the same text: own context is the receiver alone."""
_DIFFERENT_TEXTS = (*TEXT_ARMS, "self")  # arms that mean something only where the two read different texts


def default_arms(shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> tuple[str, ...]:
    """The arms of an evaluation that names none: all of them that mean something for these examples."""
    if shared:
        return SHARED_ARMS
    return tuple(arm for arm in ARMS if arm != "self" or _something_to_send(prompts, examples))


def _something_to_send(prompts: PromptSettings, examples: Iterable[Example]) -> bool:
    """Whether every receiver, in the sharer's place, would have a span to send."""
    return prompts.share_question or all(example.receiver_reads for example in examples)


def text_budget(arm: str) -> int:
    """N of the arm ``t2t_N``; 0 for any other."""
    found = re.fullmatch(r"t2t_([1-9]\d*)", arm)
    return int(found[1]) if found else 0


def label(arm: str) -> str:
    """An arm's name as people read it."""
    return re.sub(r"t2t_(\d+)", r"T2T-\1", arm).replace("_", " ")


def longest_text(arms: Sequence[str]) -> int:
    """The largest N of the arms ``t2t_N`` among some arms; 0 where there is none."""
    return max(map(text_budget, arms), default=0)


def require_arms(arms: Sequence[str], setting: str = "arms") -> None:
    """Raise a SettingError if an arm is unknown or given twice, or there is none."""
    known = [arm for arm in dict.fromkeys(arms) if arm in _ARMS or text_budget(arm)]
    if known != list(arms) or not arms:
        raise SettingError(f"{setting}={list(arms)} must be one or more of {', '.join(_ARMS)}, t2t_N, each once.")


def receiver_reading(caches: ArmCaches, arm: str) -> Reading:
    """What the receiver answers from under an arm.

    Raises:
        SettingError: If the arm means nothing for this adapter.
    """
    if caches.link.shared and arm in _DIFFERENT_TEXTS:
        raise SettingError(f"arm {arm!r} needs a sharer and a receiver that read different texts (pooler not null).")
    budget = text_budget(arm)
    return caches.reads_text(budget) if budget else _ARMS[arm](caches)


def moment_matched_noise(message: KV, ids: Sequence[str], present: Tensor) -> KV:
    """Normal noise with the mean and standard deviation of each layer and head of each example's message.

    Args:
        message: ``[layers, batch, heads, tokens, head size]``.
        ids: The examples' ids; noise is a function of them, whatever the batch.
        present: ``[batch, tokens]``, bool, False on padding, which stays zero.
    """

    def matched(tensor: Tensor, name: str) -> Tensor:
        found = torch.zeros_like(tensor)
        for row, id in enumerate(ids):
            real = present[row]
            example = tensor[:, row][:, :, real]
            generator = torch.Generator().manual_seed(zlib.crc32(f"noise/{name}/{id}".encode()))
            noise = torch.randn(example.shape, generator=generator).to(example)
            noise = (noise - noise.mean((-2, -1), keepdim=True)) / noise.std((-2, -1), keepdim=True)
            found[:, row][:, :, real] = noise * example.std((-2, -1), keepdim=True) + example.mean(
                (-2, -1), keepdim=True
            )
        return found

    return KV(matched(message.keys, "keys"), matched(message.values, "values"))
