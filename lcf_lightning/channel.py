"""`Channel`: a trained pair as its users see it. One side sends a message, the other answers with it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.subset import without_closed_layers
from lcf_lightning.data.parsing import Question, Text
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.discovery import import_named
from lcf_lightning.hearing import require_beside
from lcf_lightning.likelihood import Score
from lcf_lightning.link import Link, Role
from lcf_lightning.message import Message
from lcf_lightning.models.decoding import Answer
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.origin import Origin
from lcf_lightning.receiving import Received, decoder, scores
from lcf_lightning.sending import messages as sent_messages
from lcf_lightning.sending import origin_of, require_lists
from lcf_lightning.session import Session
from lcf_lightning.sides import Given, by_role, load_sides, prompts_of, warn_of_unchecked
from lcf_lightning.writer import Writer


class Channel:
    """A trained pair that sends and receives messages.

    Args:
        sharer: The model that has read something; None where messages are only received.
        receiver: The model that answers; None where messages are only sent.
        adapter: What was trained for this pair.

    Attributes:
        link: What handles tensors: prefill, pool, fuse, continue.
        writer: What handles text: prompts and tokenizers.

    Raises:
        GeometryError: If the models are not the pair the adapter was made for.
        ModelError: If a model has other weights than the adapter was made for, or its keys cannot be un-rotated.

    Example:
        >>> channel = Channel.from_pretrained("runs/quickstart/adapter")
        >>> message = channel.send(["likes ada tea .", "owns ben lamp ."], question="likes ada")
        >>> print(channel.receive(message, "likes ada"))
        tea
    """

    def __init__(self, sharer: FrozenModel | None, receiver: FrozenModel | None, adapter: CacheAdapter) -> None:
        self.link = Link(sharer, receiver, adapter)
        self.writer = Writer.of(self.link)
        self.others: tuple[Channel, ...] = ()  # see `beside`

    def __repr__(self) -> str:
        """One line: the pair, as far as it is loaded, and the adapter."""
        models = {role: side.model for role, side in self.link.sides.items()}
        pair = " → ".join(repr(models[role].spec.path) if role in models else "?" for role in ("sharer", "receiver"))
        settings = self.adapter.config.settings
        device = next(iter(models.values())).device
        return f"Channel({pair}, {settings.label}, d={settings.d}, {device})"

    @property
    def adapter(self) -> CacheAdapter:
        """What was trained for this pair."""
        return self.link.adapter

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        sides: Role | Literal["both"] = "both",
        modules: str | Sequence[str] = (),
        *,
        sharer: Given | None = None,
        receiver: Given | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
    ) -> Channel:
        """The channel of an adapter folder, or of ``owner/name`` on the hub at ``revision``.

        The models are those the adapter names, in the dtypes it was trained with, unless others are given. Their
        weights are compared with the fingerprints that the adapter knows; a warning says where that cannot be done.

        Args:
            folder: The adapter.
            device: Where models and adapter go. ``auto``: where a given model is, else the machine's accelerator.
            revision: Branch, tag or commit on the hub; null for its default branch.
            sides: ``both``; or ``sharer`` to `send` only, or ``receiver`` to `receive` only, without the other model.
            modules: Modules to import first, which define parts of the adapter that are not of this package. What an
                adapter names itself is never imported.
            sharer: Where the adapter's sharer lies here: a path or hub id; or the model itself: a `FrozenModel`, or
                transformers' model and tokenizer, which are frozen (see `FrozenModel.of`).
            receiver: The same of the receiver.
            dtype: Of the models that are loaded: ``float32``, ``bfloat16`` or ``float16``; null for that of training.
            quantization: Likewise: ``8bit``, ``nf4`` or ``none``.

        Raises:
            SettingError: If a setting is not allowed here, or one of ``modules`` cannot be imported.
            AdapterFileError: If the folder is not a whole adapter.
            ModelError: If a model cannot be read, or has other weights than the adapter was made for.
            GeometryError: If a model is not the one the adapter was made for.
        """
        given = by_role(sides, sharer, receiver)
        import_named(modules)
        adapter = CacheAdapter.from_pretrained(folder, revision).requires_grad_(False)
        prompts_of(adapter)  # what is wrong there is said before a weight is loaded
        models = load_sides(adapter.config, given, device, dtype, quantization)
        adapter = without_closed_layers(adapter.to(next(iter(models.values())).device))
        channel = cls(models.get("sharer"), models.get("receiver"), adapter)
        warn_of_unchecked(adapter.config, given, models)
        return channel

    def beside(self, *others: Channel) -> Channel:
        """This channel, which hears messages of other adapters too: of other sharers, to the same receiver.

        `receive` and `score` then take messages of any of them, together too; `send` stays this one's. Messages that
        become tokens (``pooler: prefix``, ``carry``) stand one behind the other, in the order of the channels.

        Raises:
            SettingError: If one receiver cannot hear them all: see docs/message.md.
        """
        both = copy(self)
        both.others = (*self.others, *others)
        require_beside(both)
        return both

    @cached_property
    def origin(self) -> Origin:
        """What tells this channel's messages from others. Found once: its adapter is taken to learn no more."""
        return origin_of(self.adapter)

    @cached_property
    def opened(self) -> torch.Tensor:
        """The layers that `receive` edits, see `LayerGates.open`. Found once, as `origin` is."""
        return self.adapter.gates.open

    @property
    def takes_question(self) -> bool:
        """Whether `send` uses a question."""
        return self.link.shared or self.prompts.share_question

    def send(
        self,
        passages: Text,
        question: Question | None = None,
        pooled: bool = False,
        *,
        since: Text | None = None,
        to: str | None = None,
        session: str | None = None,
        expires: float | None = None,
    ) -> Message:
        """What the sharer says of what it has read. Where it was shown a question, the message is for that one.

        Args:
            passages: A text, whose lines are its passages; the passages themselves; or a chat, whose turns are.
            question: Shown to the sharer where it was in training, as text or as a chat that ends with it; a warning
                says where it was and none is given, and where it was not and one is. Where both models read the same
                text, what the receiver will be asked.
            pooled: Pool over the spans already: the smallest message, for a receiver that hears no other sharer.
            since: What was sent before, with which the passages begin: the message is of the rest, read after it.
            to: The message is for the receiver of this name alone, see `Inbox`; needs ``expires``.
            session: It is for this session alone; needs ``expires``.
            expires: It lives so many seconds from now, and is read once.

        Raises:
            DataError: If there is nothing to send, a chat cannot be understood, or the passages begin otherwise.
            SettingError: If there is no sharer, ``pooled`` or ``since`` mean nothing here, or it cannot be bound so.
        """
        return sent_messages(self, [passages], [question], pooled, since, to=to, session=session, expires=expires)[0]

    def send_batch(
        self,
        passages: Sequence[Text],
        questions: Sequence[Question | None] | None = None,
        pooled: bool = False,
        *,
        to: str | None = None,
        session: str | None = None,
        expires: float | None = None,
    ) -> list[Message]:
        """One message for each text and question, or for each text alone; see `send`."""
        require_lists(texts=passages)
        asked = [None] * len(passages) if questions is None else questions
        return sent_messages(self, passages, asked, pooled, None, to=to, session=session, expires=expires)

    @overload
    def receive(
        self, message: Received, question: Question, passages: Text = ..., max_new_tokens: int = ...,
        stream: Literal[False] = ..., **options: Any,
    ) -> Answer: ...  # fmt: skip

    @overload
    def receive(
        self, message: Received, question: Question, passages: Text = ..., max_new_tokens: int = ...,
        *, stream: Literal[True], **options: Any,
    ) -> Generator[str, None, Answer]: ...  # fmt: skip

    def receive(
        self,
        message: Received,
        question: Question,
        passages: Text = (),
        max_new_tokens: int = 32,
        stream: bool = False,
        **options: Any,
    ) -> Answer | Generator[str, None, Answer]:
        """The receiver's answer, given a message and its own passages: the sharer's, where both read the same text.

        A warning names a question that a message was not sent for; one that is bound is refused.

        Args:
            message: Of one sharer; of several, whose spans are taken together; or None, for the receiver alone.
            question: As text, or as a chat that ends with it.
            passages: What the receiver has read itself; see `send`.
            max_new_tokens: Longest answer, in receiver tokens.
            stream: Give the answer's pieces as they come; the whole answer is the generator's return value.
            options: Decoding options of transformers' ``generate``; greedy where they ask for nothing else.

        Raises:
            MessageError: If a message comes from another adapter or pair, edits the cache to what is not finite, is
                bound and was sent for another question, or, where both read the same text, was sent for another.
            GeometryError: If a message becomes tokens (``pooler=prefix``), and these and the prompt are longer than the
                receiver can see.
            DataError: If a chat cannot be understood.
            SettingError: If this channel has no receiver, or a decoding option is not allowed.
        """
        decoding = decoder(self, [message], [question], [passages], max_new_tokens, options)
        return decoding.stream() if stream else decoding.answers()[0]

    def receive_batch(
        self,
        messages: Sequence[Received],
        questions: Sequence[Question],
        passages: Sequence[Text] | None = None,
        max_new_tokens: int = 32,
        **options: Any,
    ) -> list[Answer]:
        """One answer for each message, or None, and question; see `receive`."""
        texts = [()] * len(messages) if passages is None else passages
        require_lists(messages=messages, questions=questions, texts=texts)
        return decoder(self, messages, questions, texts, max_new_tokens, options).answers() if messages else []

    def score(
        self, message: Received, question: Question, candidates: Sequence[str], passages: Text = ()
    ) -> list[Score]:
        """How probable each candidate is as the receiver's answer, given a message and its own passages.

        Args:
            message: See `receive`.
            question: As text, or as a chat that ends with it.
            candidates: Possible answers; each is scored whole, as it follows the prompt, without an end.
            passages: What the receiver has read itself; see `send`.

        Returns:
            For each candidate the log probability of all its tokens, in nats, and whether greedy decoding begins with
            it. Divide by ``len(candidate.encode())`` to compare candidates as `evaluate` does.

        Raises:
            MessageError, GeometryError, SettingError: As `receive`.
            DataError: If a chat cannot be understood, or a candidate is no text of at least one token.
        """
        require_lists(candidates=candidates)
        return scores(self, [message], [question], [passages], [candidates])[0]

    def score_batch(
        self,
        messages: Sequence[Received],
        questions: Sequence[Question],
        candidates: Sequence[Sequence[str]],
        passages: Sequence[Text] | None = None,
    ) -> list[list[Score]]:
        """The scores of each question's candidates; see `score`."""
        texts = [()] * len(messages) if passages is None else passages
        require_lists(messages=messages, questions=questions, candidates=candidates, texts=texts)
        for of_question in candidates:
            require_lists(candidates=of_question)
        return scores(self, messages, questions, texts, candidates) if messages else []

    def session(self) -> Session:
        """A conversation with the receiver, whose edited cache is kept from turn to turn."""
        return Session(self)

    def load_session(self, file: str | Path) -> Session:
        """The conversation that `Session.save` wrote, see `Session.load`."""
        return Session.load(self, file)

    @cached_property
    def prompts(self) -> PromptSettings:
        """How prompts were written in training; an AdapterFileError if the adapter's metadata cannot be understood."""
        return prompts_of(self.adapter)
