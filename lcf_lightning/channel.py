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
from lcf_lightning.adapter.pruning import without_closed_layers
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompts import PromptSettings
from lcf_lightning.data.said import Question, Text, passages_of, question_of
from lcf_lightning.data.tokens import Encoded, Tokens, pad_left, split_last
from lcf_lightning.errors import AdapterFileError, DataError, MessageError, SettingError
from lcf_lightning.message import Message, Origin
from lcf_lightning.models.decoding import Answer, Decoder
from lcf_lightning.models.geometry import KV
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
        loaded = {spec: load_frozen(spec, device) for spec in specs.values()}  # once where both are the same
        models = {role: loaded[spec] for role, spec in specs.items()}
        return cls(models.get("sharer"), models.get("receiver"), without_closed_layers(adapter))

    @cached_property
    def origin(self) -> Origin:
        """What tells this channel's messages from others; an adapter that learns on has another."""
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

    def send(self, passages: Text, question: Question | None = None, pooled: bool = False) -> Message:
        """What the sharer says of what it has read.

        Args:
            passages: A text, whose lines are its passages; the passages themselves; or a chat, whose turns are.
            question: Shown to the sharer where it was in training, as text or as a chat that ends with it. Where both
                models read the same text, what the receiver will be asked.
            pooled: Pool over the spans already: the smallest message, for a receiver that hears no other sharer.

        Raises:
            DataError: If there is nothing to send, or a chat cannot be understood.
            SettingError: If this channel has no sharer, or ``pooled`` means nothing for it.
        """
        return self.send_batch([passages], [question], pooled)[0]

    @torch.no_grad()
    def send_batch(
        self, passages: Sequence[Text], questions: Sequence[Question | None], pooled: bool = False
    ) -> list[Message]:
        """One message for each text and question; see `send`."""
        if len(passages) != len(questions):
            raise DataError(f"{len(passages)} texts and {len(questions)} questions must be as many of each.")
        read = [passages_of(text) for text in passages]
        asked = [((), None) if question is None else question_of(question) for question in questions]
        if self.shared:
            if pooled:
                raise SettingError("pooled=true: where both models read the same text a message is not pooled.")
            texts = zip(read, asked, strict=True)
            batch = (
                self.collator(self.prompts)
                .train(
                    [
                        Example("message", question or "", ("",), text, text, history=tuple(h))
                        for text, (h, question) in texts
                    ]
                )
                .to(self.sharer.device)
            )
            kv, present = self.pool(self.read_sharer(batch.sharer), batch.index), batch.receiver.mask
            sent_for: list[str | None] = _digests(batch.receiver)
        else:
            encoder = self.encoder(self.prompts, "sharer")
            shown = asked if self.prompts.share_question else [((), None)] * len(asked)
            prompts = [encoder.prompt(text, q, history=h) for text, (h, q) in zip(read, shown, strict=True)]
            _warn_of_dropped(prompts, "sharer")
            if any(max(prompt.spans, default=-1) < 0 for prompt in prompts):
                raise DataError("send needs at least one passage, or a question that the sharer is shown.")
            tokens = pad_left(prompts, encoder.pad_id).to(self.sharer.device)
            kv, present = self.summarise(self.read_sharer(tokens), tokens.spans)
            if pooled:
                kv, present = self.adapter.merge(kv, present), present.any(1, keepdim=True)
            sent_for = [None] * len(prompts)
        return [
            Message(kv.keys[:, row : row + 1, :, own], kv.values[:, row : row + 1, :, own], self.origin, prompt)
            for row, (own, prompt) in enumerate(zip(present, sent_for, strict=True))
        ]

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
            message: Of one sharer, or of several, whose spans are pooled together.
            question: As text, or as a chat that ends with it.
            passages: What the receiver has read itself; see `send`.
            max_new_tokens: Longest answer, in receiver tokens.
            stream: Give the answer's pieces as they come; the whole answer is the generator's return value.
            options: Decoding options of transformers' ``generate``; greedy where they ask for nothing else.

        Raises:
            MessageError: If a message comes from another adapter or pair, edits the cache to what is not finite, or,
                where both read the same text, was sent for another.
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
        return self._decoder(messages, questions, texts, max_new_tokens, options).answers()

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
        if not len(messages) == len(questions) == len(passages):
            counts = f"{len(messages)} messages, {len(questions)} questions and {len(passages)} texts"
            raise DataError(f"{counts} must be as many of each.")
        received = [[message] if isinstance(message, Message) else list(message) for message in messages]
        for message in (message for several in received for message in several):
            message.origin.require(self.origin)
        encoder = self.encoder(self.prompts, "receiver")
        encoder = encoder.unlimited() if self.shared else encoder
        prompts = [
            encoder.prompt(passages_of(text), asked, history=history)
            for text, (history, asked) in zip(passages, map(question_of, questions), strict=True)
        ]
        _warn_of_dropped(prompts, "receiver")
        read, last = split_last(prompts, encoder.pad_id, self.receiver.device)
        if self.shared and [[m.prompt for m in several] for several in received] != [[d] for d in _digests(read)]:
            raise MessageError(
                "message of another text: where both models read the same, send and receive need the same passages and "
                "question, and each question one message."
            )
        kv, present = _together(received, self.adapter.gates.logits)
        watch = Stopwatch(self.receiver.device)
        with watch("receiver_prefill"):
            cache = self.read_receiver(read)
        with watch("fuse"):
            delta = self.delta(cache, kv if self.shared else self.adapter.merge(kv, present))
            if not all(bool(torch.isfinite(side).all()) for side in delta):
                raise MessageError("this message edits the receiver's cache to values that are not finite.")
            cache = self.edit(cache, self.adapter.config.receiver_layers, delta)
        return Decoder(self.receiver, cache, torch.cat([read.ids, last], dim=1), watch, max_new_tokens, options)

    @cached_property
    def prompts(self) -> PromptSettings:
        """How prompts were written in training.

        Raises:
            AdapterFileError: If the adapter's metadata cannot be understood.
        """
        try:
            return PromptSettings(**self.adapter.config.metadata.get("prompts", {}))
        except TypeError as error:
            raise AdapterFileError(f"metadata.prompts of this adapter cannot be understood: {error}") from error


def _warn_of_dropped(prompts: Sequence[Encoded], role: Role) -> None:
    dropped = sum(prompt.dropped for prompt in prompts)
    if dropped:
        message = f"max_{role}_tokens, as in training, leaves out {dropped} spans of what the {role} reads."
        warnings.warn(message, stacklevel=4)


def _digests(prompts: Tokens) -> list[str | None]:
    """A digest of each prompt's token ids."""
    return [
        hashlib.blake2b(ids[mask].cpu().numpy().tobytes(), digest_size=16).hexdigest()
        for ids, mask in zip(prompts.ids, prompts.mask, strict=True)
    ]


def _together(received: Sequence[Sequence[Message]], like: Tensor) -> tuple[KV, Tensor]:
    """The spans of each row's messages, padded on the left with zeros, in the dtype and on the device of ``like``.

    Returns:
        ``[layers, batch, heads, spans, head_dim]``, and ``[batch, spans]``, bool, False on padding.
    """
    if not all(received):
        raise DataError("receive needs at least one message for each question.")
    counts = torch.tensor([sum(message.spans for message in messages) for messages in received])
    width = int(counts.max())
    present = (torch.arange(width) >= width - counts[:, None]).to(like.device)

    def padded(side: Literal["keys", "values"]) -> Tensor:
        rows = [torch.cat([getattr(message, side).to(like) for message in messages], 3) for messages in received]
        return torch.cat([torch.nn.functional.pad(row, (0, 0, width - row.shape[3], 0)) for row in rows], 1)

    return KV(padded("keys"), padded("values")), present
