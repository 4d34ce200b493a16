"""`Channel`: a trained pair as its users see it. One side sends a message, the other answers with it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lcf_lightning.adapter.adapter import CacheAdapter
from lcf_lightning.adapter.poolers import Sent
from lcf_lightning.adapter.pruning import without_closed_layers
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.data.prompts import History, PromptSettings
from lcf_lightning.data.said import Question, Text, passages_of, question_of
from lcf_lightning.data.tokens import Encoded, Tokens, pad_left, split_last
from lcf_lightning.errors import AdapterFileError, DataError, MessageError, SettingError
from lcf_lightning.message import Message, Origin, together
from lcf_lightning.models.decoding import Answer, Decoder, Decoding
from lcf_lightning.models.geometry import KV, positions
from lcf_lightning.models.loading import geometry_of, load_frozen
from lcf_lightning.pair import Pair, Role, spec_of
from lcf_lightning.stopwatch import Stopwatch


class Channel(Pair):
    """A pair that sends and receives messages; arguments and errors are those of `Pair`.

    Example:
        >>> channel = Channel.from_pretrained("runs/quickstart/adapter")
        >>> message = channel.send(["likes ada tea .", "owns ben lamp ."], question="likes ada")
        >>> print(channel.receive(message, "likes ada"))
        tea
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        sides: Role | Literal["both"] = "both",
    ) -> Channel:
        """The channel of an adapter folder, or of ``owner/name`` on the hub at ``revision``.

        The models are those the adapter names, in the dtypes it was trained with.

        Args:
            folder: The adapter.
            device: Where models and adapter go.
            revision: Branch, tag or commit on the hub; null for its default branch.
            sides: ``both``; or ``sharer`` to `send` only, or ``receiver`` to `receive` only, without the other model.

        Raises:
            SettingError: If ``sides`` is none of these.
            AdapterFileError: If the folder is not a whole adapter.
            ModelError: If a model cannot be read, or has other weights than the adapter was made for.
            GeometryError: If a model is not the one the adapter was made for.
        """
        if sides not in ("both", "sharer", "receiver"):
            raise SettingError(f"sides={sides!r} must be both, sharer or receiver.")
        adapter = CacheAdapter.from_pretrained(folder, revision).to(device).requires_grad_(False)
        roles: tuple[Role, ...] = ("sharer", "receiver") if sides == "both" else (sides,)
        specs = {role: spec_of(getattr(adapter.config, role)) for role in roles}
        for role, spec in specs.items():
            adapter.config.require(role, geometry_of(spec))
        _prompts_of(adapter)  # what is wrong there is said before a weight is loaded
        loaded = {spec: load_frozen(spec, device) for spec in specs.values()}  # once where both are the same
        models = {role: loaded[spec] for role, spec in specs.items()}
        return cls(models.get("sharer"), models.get("receiver"), without_closed_layers(adapter))

    @cached_property
    def origin(self) -> Origin:
        """What tells this channel's messages from others. Found once: its adapter is taken to learn no more."""
        config = self.adapter.config
        sharer = config.sharer.geometry
        return Origin(
            adapter=self.adapter.fingerprint(),
            sharer=config.sharer.fingerprint,
            receiver=config.receiver.fingerprint,
            layers=len(config.receiver_layers),
            heads=sharer.kv_heads,
            head_dim=sharer.head_dim,
        )

    @property
    def takes_question(self) -> bool:
        """Whether `send` uses a question: the sharer was shown it in training, or reads the receiver's own text."""
        return self.shared or self.prompts.share_question

    def send(self, passages: Text, question: Question | None = None, pooled: bool = False) -> Message:
        """What the sharer says of what it has read.

        Args:
            passages: A text, whose lines are its passages; the passages themselves; or a chat, whose turns are.
            question: Shown to the sharer where it was in training, as text or as a chat that ends with it; a warning
                says where it was and none is given, and where it was not and one is. Where both models read the same
                text, what the receiver will be asked.
            pooled: Pool over the spans already: the smallest message, for a receiver that hears no other sharer.

        Raises:
            DataError: If there is nothing to send, or a chat cannot be understood.
            SettingError: If this channel has no sharer, or ``pooled`` means nothing for it.
        """
        return self._send([passages], [question], pooled)[0]

    def send_batch(
        self, passages: Sequence[Text], questions: Sequence[Question | None], pooled: bool = False
    ) -> list[Message]:
        """One message for each text and question; see `send`."""
        return self._send(passages, questions, pooled)

    @torch.no_grad()
    def _send(self, passages: Sequence[Text], questions: Sequence[Question | None], pooled: bool) -> list[Message]:
        _require_lists(texts=passages, questions=questions)
        if not passages:
            return []
        read = [passages_of(text) for text in passages]
        asked = [((), None) if question is None else question_of(question) for question in questions]
        pooler = self.adapter.config.settings.pooler
        if pooled and pooler != "span":
            raise SettingError(
                f"pooled=true must be false with pooler={pooler or 'null'}, where nothing is pooled before it is read."
            )
        if self.shared:
            sent, sent_for = self._aligned(read, asked)
        else:
            if self.takes_question and None in questions:
                message = "question=None, but this adapter's sharer was shown the question in training: give it here."
                warnings.warn(message, stacklevel=4)
            if not self.takes_question and any(question is not None for question in questions):
                message = "question not read: this adapter's sharer was shown none in training; give it to receive."
                warnings.warn(message, stacklevel=4)
            sent = self._summaries(read, asked if self.takes_question else [((), None)] * len(asked))
            sent_for = [None] * len(read)
            sent = self.adapter.merge(sent) if pooled else sent
        kv, present = sent
        return [
            Message(kv.keys[:, row : row + 1, :, own], kv.values[:, row : row + 1, :, own], self.origin, pooled, prompt)
            for row, (own, prompt) in enumerate(zip(present, sent_for, strict=True))
        ]

    def _summaries(self, read: Sequence[tuple[Passage, ...]], asked: Sequence[tuple[History, str | None]]) -> Sent:
        """Span summaries of each text."""
        encoder = self.encoder(self.prompts, "sharer")
        prompts = [
            encoder.prompt(text, question, history=history)
            for text, (history, question) in zip(read, asked, strict=True)
        ]
        _warn_of_dropped(prompts, "sharer")
        if any(max(prompt.spans, default=-1) < 0 for prompt in prompts):
            raise DataError(
                "send needs at least one passage, or a question that the sharer is shown, within "
                f"max_sharer_tokens={self.prompts.max_sharer_tokens}."
            )
        tokens = pad_left(prompts, encoder.pad_id).to(self.sharer.device)
        longest, limit = tokens.mask.shape[1], positions(self.sharer.model.config)
        if limit is not None and longest > limit:
            message = f"the sharer reads {longest} tokens, and {self.sharer.spec.path!r} was made for {limit}."
            warnings.warn(message, stacklevel=5)
        return self.summarise(self.read_sharer(tokens), tokens.spans)

    def _aligned(
        self, read: Sequence[tuple[Passage, ...]], asked: Sequence[tuple[History, str | None]]
    ) -> tuple[Sent, list[str | None]]:
        """The sharer's cache at each of the receiver's tokens, and digests of these."""
        examples = [
            Example("message", question or "", ("",), text, text, history=tuple(history))
            for text, (history, question) in zip(read, asked, strict=True)
        ]
        batch = self.collator(self.prompts).train(examples).to(self.sharer.device)
        sent = self.pool(self.read_sharer(batch.sharer), batch.index)
        return Sent(sent.kv, batch.receiver.mask), _digests(batch.receiver)

    @overload
    def receive(
        self,
        message: Message | Sequence[Message],
        question: Question,
        passages: Text = ...,
        max_new_tokens: int = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> Answer: ...

    @overload
    def receive(
        self,
        message: Message | Sequence[Message],
        question: Question,
        passages: Text = ...,
        max_new_tokens: int = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Generator[str, None, Answer]: ...

    def receive(
        self,
        message: Message | Sequence[Message],
        question: Question,
        passages: Text = (),
        max_new_tokens: int = 32,
        stream: bool = False,
        **options: Any,
    ) -> Answer | Generator[str, None, Answer]:
        """The receiver's answer, given a message and its own passages: the sharer's, where both read the same text.

        Args:
            message: Of one sharer, or of several, whose spans are taken together.
            question: As text, or as a chat that ends with it.
            passages: What the receiver has read itself; see `send`.
            max_new_tokens: Longest answer, in receiver tokens.
            stream: Give the answer's pieces as they come; the whole answer is the generator's return value.
            options: Decoding options of transformers' ``generate``; greedy where they ask for nothing else.

        Raises:
            MessageError: If a message comes from another adapter or pair, edits the cache to what is not finite, or,
                where both read the same text, was sent for another.
            GeometryError: If with ``pooler=prefix`` message and prompt are longer than the receiver can see.
            DataError: If a chat cannot be understood.
            SettingError: If this channel has no receiver, or a decoding option is not allowed.
        """
        decoder = self._decoder([message], [question], [passages], max_new_tokens, options)
        return decoder.stream() if stream else decoder.answers()[0]

    def receive_batch(
        self,
        messages: Sequence[Message | Sequence[Message]],
        questions: Sequence[Question],
        passages: Sequence[Text] | None = None,
        max_new_tokens: int = 32,
        **options: Any,
    ) -> list[Answer]:
        """One answer for each message and question; see `receive`."""
        texts = [()] * len(messages) if passages is None else passages
        _require_lists(messages=messages, questions=questions, texts=texts)
        return self._decoder(messages, questions, texts, max_new_tokens, options).answers() if messages else []

    @torch.no_grad()
    def _decoder(
        self,
        messages: Sequence[Message | Sequence[Message]],
        questions: Sequence[Question],
        passages: Sequence[Text],
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> Decoder:
        """The receiver's caches, edited by the messages, and what is to be decoded on them."""
        decoding = Decoding.of(self.receiver, max_new_tokens, options)
        received = [self._received(message) for message in messages]
        read, last = self._receiver_prompts(questions, passages)
        if self.shared:
            written = [[(message.prompt, message.spans) for message in several] for several in received]
            if written != [[own] for own in zip(_digests(read), read.mask.sum(1).tolist(), strict=True)]:
                raise MessageError(
                    "message of another text: where both models read the same, send and receive need the same passages "
                    "and question, and each question one message."
                )
        keys, values, present = together(received, self.adapter.gates.logits)
        watch, layers = Stopwatch(self.receiver.device), self.adapter.config.receiver_layers
        with watch("receiver_prefill"):
            cache = self.read_receiver(read)
        with watch("fuse"):
            sent = Sent(KV(keys, values), present)
            cache = self.fuse(cache, sent if self.shared else self.adapter.merge(sent))
            if not all(
                bool(torch.isfinite(side[layer]).all()) for side in (cache.keys, cache.values) for layer in layers
            ):
                raise MessageError("this message edits the receiver's cache to values that are not finite.")
        return Decoder(self.receiver, cache, read, last, watch, decoding)

    def _received(self, given: Message | Sequence[Message]) -> list[Message]:
        """The messages to one question, if they may be heard together."""
        several = list(given) if isinstance(given, Sequence) else [given]
        if not several:
            raise DataError("receive needs at least one message for each question.")
        if not all(isinstance(message, Message) for message in several):
            raise MessageError("receive takes a Message, or several; `Message.from_bytes` reads what has travelled.")
        if len(several) > 1 and any(message.pooled for message in several):
            raise MessageError("a pooled message stands alone; of several sharers each must send with pooled=false.")
        for message in several:
            message.origin.require(self.origin)
        return several

    def _receiver_prompts(self, questions: Sequence[Question], passages: Sequence[Text]) -> tuple[Tokens, Tensor]:
        """What the receiver reads itself: all but the last token, and it."""
        encoder = self.encoder(self.prompts, "receiver")
        encoder = encoder.unlimited() if self.shared else encoder
        prompts = [
            encoder.prompt(passages_of(text), asked, history=history)
            for text, (history, asked) in zip(passages, map(question_of, questions), strict=True)
        ]
        _warn_of_dropped(prompts, "receiver")
        if min(len(prompt.ids) for prompt in prompts) < 2:
            raise DataError("the receiver's prompt must have at least two tokens: the last is read after the message.")
        return split_last(prompts, encoder.pad_id, self.receiver.device)

    @cached_property
    def prompts(self) -> PromptSettings:
        """How prompts were written in training.

        Raises:
            AdapterFileError: If the adapter's metadata cannot be understood.
        """
        return _prompts_of(self.adapter)


def _prompts_of(adapter: CacheAdapter) -> PromptSettings:
    try:
        return PromptSettings(**adapter.config.metadata.get("prompts", {}))
    except (TypeError, AttributeError, SettingError) as error:
        raise AdapterFileError(f"metadata.prompts of this adapter cannot be understood: {error}") from error


def _require_lists(**lists: Any) -> None:
    """Raise a DataError unless all are lists of one length."""
    for name, value in lists.items():
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise DataError(f"{name} of a batch must be a list, not {type(value).__name__}.")
    if len({len(value) for value in lists.values()}) > 1:
        counts = ", ".join(f"{len(value)} {name}" for name, value in lists.items())
        raise DataError(f"{counts} of a batch must be as many of each.")


def _warn_of_dropped(prompts: Sequence[Encoded], role: Role) -> None:
    dropped = sum(prompt.dropped for prompt in prompts)
    if dropped:
        message = f"max_{role}_tokens, as in training, leaves out {dropped} spans of what the {role} reads."
        warnings.warn(message, stacklevel=6)


def _digests(prompts: Tokens) -> list[str | None]:
    """A digest of each prompt's token ids."""
    return [
        hashlib.blake2b(ids[mask].cpu().numpy().tobytes(), digest_size=16).hexdigest()
        for ids, mask in zip(prompts.ids, prompts.mask, strict=True)
    ]
