"""`Session`: a conversation with a receiver, whose edited cache is kept from turn to turn, in memory and on disk."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch

from lcf_lightning.conversation import State, Told, known_by, read_state, slots_of, write_state
from lcf_lightning.data.parsing import Question, Text, parse_passages, parse_question
from lcf_lightning.data.prompts import Earlier
from lcf_lightning.data.tokens import Encoded
from lcf_lightning.errors import DataError, GeometryError, MessageError, SettingError
from lcf_lightning.host import to_device
from lcf_lightning.message import Message
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.decoding import Answer, Decoder, cut
from lcf_lightning.models.options import Decoding
from lcf_lightning.receiving import Received, listen, received_together, require_last, warn_of_unusual
from lcf_lightning.stopwatch import Stopwatch

if TYPE_CHECKING:
    from lcf_lightning.channel import Channel


class _Begun(NamedTuple):
    """A turn whose answer is being decoded: the state that it began from, and what it leaves but for the answer."""

    before: State
    turns: Earlier
    said: tuple[str, ...]
    ids: list[int]
    told: tuple[Told, ...]
    cache: KVCache
    decoder: Decoder


class Session:
    """A conversation: the receiver's edited cache is kept over its turns, and only what is new is read.

    A turn's prompt is the whole chat as a prompt of training would hold it. What of it the receiver has read already,
    token by token, it does not read again: if a chat template writes earlier turns otherwise than they were read, all
    from the first token that differs is read anew. The keys and values of an answer are those that decoding has left;
    after beam search the answer is read.

    A message of a later turn is heard as one of the first is: where messages become tokens (``pooler: prefix``,
    ``carry``) they stand behind all that was said before, else they edit the tokens of the new turn alone. What was
    heard in an earlier turn goes on being heard, for it is in the cache. So a message that is given again, the same
    keys and values bit for bit, costs a digest of it and nothing else. If the place where a message was heard is read
    anew, it is heard anew with the turn that does so.

    A turn that fails, or whose stream is not read to its end, leaves the session as it was.

    Attributes:
        channel: Whose receiver this talks with.
        state: What it remembers, a value: put an earlier one back to go back to it, or into another session to go on
            in two ways.

    Example:
        >>> session = channel.session()
        >>> session.ask("likes ada", ["finds eva bell ."], message).text
        'tea'
        >>> session.ask("owns ben").text
        'lamp'
    """

    def __init__(self, channel: Channel) -> None:
        channel.link.side("receiver")  # must be loaded
        if channel.others:
            raise SettingError("session() of a channel beside others must be of one adapter: take one of the channels.")
        self.channel, self.state = channel, State()

    def __repr__(self) -> str:
        """One line, without a word of what was said."""
        heard = sum(len(told.messages) for told in self.state.told)
        return f"Session({len(self.state.turns)} turns, {self.tokens} tokens, {heard} messages, {self.channel!r})"

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """What was said: of each turn the user's side, passages included, and the answer."""
        return tuple(("".join(said), answer) for said, answer in self.state.turns)

    @property
    def tokens(self) -> int:
        """How many tokens the receiver's cache holds, those of messages included."""
        return 0 if self.state.cache is None else self.state.cache.mask.shape[1]

    @overload
    def ask(
        self,
        question: Question,
        passages: Text = ...,
        message: Received = ...,
        max_new_tokens: int = ...,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        question: Question,
        passages: Text = ...,
        message: Received = ...,
        max_new_tokens: int = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Generator[str, None, Answer]: ...

    def ask(
        self,
        question: Question,
        passages: Text = (),
        message: Received = None,
        max_new_tokens: int = 32,
        stream: bool = False,
        **options: Any,
    ) -> Answer | Generator[str, None, Answer]:
        """The receiver's answer in the next turn; the first one's is that of `Channel.receive`.

        Args:
            question: As text, or as a chat that ends with it, whose earlier turns come after those of this session.
            passages: What the receiver reads itself in this turn; see `Channel.send`.
            message: What it hears in this turn: a message, several, or None.
            max_new_tokens: Longest answer, in receiver tokens.
            stream: Give the answer's pieces as they come; the whole answer is the generator's return value.
            options: See `Channel.receive`.

        Raises:
            MessageError: As `Channel.receive`; or if a message comes after the first turn where both models read the
                same text: it was sent for a prompt of its own.
            GeometryError: If the chat is longer than the receiver can see, or as `Channel.receive`.
            DataError: If the passages are more than ``max_receiver_tokens`` allows a turn, a chat cannot be understood,
                or another turn has ended while this one's answer was decoded.
            SettingError: If a decoding option is not allowed.
        """
        begun = self._begin(question, passages, message, max_new_tokens, options)
        return self._stream(begun) if stream else self._end(begun, begun.decoder.answers()[0])

    def _stream(self, begun: _Begun) -> Generator[str, None, Answer]:
        return self._end(begun, (yield from begun.decoder.stream()))

    @torch.no_grad()
    def _begin(
        self, question: Question, passages: Text, message: Received, max_new_tokens: int, options: dict[str, Any]
    ) -> _Begun:
        """The receiver reads what is new; nothing of the session changes."""
        channel, before = self.channel, self.state
        receiver = channel.link.receiver
        decoding = Decoding.of(receiver, max_new_tokens, options, channel.prompts.stop)
        given = [(known_by(each), each) for each in received_together(channel, message)]
        known = {digest for each in before.told for digest, _ in each.messages}
        fresh = [pair for pair in given if pair[0] not in known]
        turns, said, prompt = self._written(question, passages, bool(given), [each for _, each in fresh])
        read = _in_common(before.ids, prompt)
        told = tuple(each for each in before.told if each.remains(read)) if read else ()
        news = self._news(fresh, told)
        past = before.cache.until(read + slots_of(told)) if before.cache is not None and read else None
        self._require_room(len(prompt.ids) + slots_of(told), told, news)
        rest = Encoded(prompt.ids[read:], prompt.spans[read:], begun=prompt.begun)
        if past is None or news or (decoding.config.num_beams or 1) > 1:
            cache, _, last, watch, _ = heard = listen(channel, [[message for _, message in news]], [rest], past)
            check = heard.check
        else:  # nothing comes in between: all that is new is read at once, on the way to the first token
            last = to_device(torch.tensor([rest.ids]), receiver.device)
            cache, watch, check = past, Stopwatch(receiver.device, waits=False), _no_objection
        own = len(prompt.ids) - last.shape[1]
        if news:
            slots = cache.mask.shape[1] - own - slots_of(told)
            told = (*told, Told(read, len(rest.ids), slots, tuple(news)))
        ids = to_device(torch.tensor([prompt.ids[:own]]), receiver.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        decoder = Decoder(receiver, cache, ids, mask, last, watch, decoding, check)
        return _Begun(before, turns, said, prompt.ids, told, cache, decoder)

    def _written(
        self, question: Question, passages: Text, given: bool, fresh: Sequence[Message]
    ) -> tuple[Earlier, tuple[str, ...], Encoded]:
        """The turns before this one, the user's side of it, and the prompt of all."""
        channel, settings = self.channel, self.channel.prompts
        if channel.link.shared and given and self.state.turns:
            raise MessageError(
                "message after the first turn of a session: where both models read the same text, it was sent for a "
                "prompt of its own, and not for this chat."
            )
        texts, (history, asked) = parse_passages(passages), parse_question(question)
        warn_of_unusual(channel, [fresh], [question])
        if settings.max_receiver_tokens is not None and not channel.link.shared:
            dropped = channel.writer.prompts("receiver", settings, [texts], [(history, asked)])[0].dropped
            if dropped:
                raise DataError(
                    f"max_receiver_tokens={settings.max_receiver_tokens}, as in training, leaves out {dropped} spans "
                    "of this turn, and a session keeps all that is said; give fewer passages."
                )
        turns = (*self.state.turns, *history)
        (prompt,) = channel.writer.prompts("receiver", settings, [texts], [(turns, asked)], unlimited=True)
        require_last([prompt])
        return turns, channel.writer.encoder(settings, "receiver").said(texts, asked), prompt

    def _news(self, fresh: Sequence[tuple[str, Message]], told: Sequence[Told]) -> list[tuple[str, Message]]:
        """What is to be heard in this turn: what is no longer in the cache, and what has never been."""
        lost = [pair for each in self.state.told if each not in told for pair in each.messages]
        news = [*lost, *fresh]
        if lost and self.channel.link.shared:
            raise MessageError(
                "the chat template writes what the message was sent for otherwise in this turn; where both models "
                "read the same text, begin another session."
            )
        if lost:
            received_together(self.channel, [message for _, message in news])  # pooled ones stand alone
        return news

    def _require_room(self, tokens: int, told: Sequence[Told], news: Sequence[tuple[str, Message]]) -> None:
        """Refuse a chat of more tokens, with those of messages, than the receiver was made to read, or sees one in."""
        receiver, layers = self.channel.link.receiver, self.channel.adapter.config.receiver_layers
        limit = receiver.family.positions(receiver.config)
        if self.channel.adapter.prepends:
            tokens += sum(message.spans for _, message in news)
        if limit is not None and tokens > limit:
            raise GeometryError(
                f"this session would be {tokens} tokens long, and {receiver.spec.path!r} was made to read {limit}; "
                "begin another."
            )
        window = receiver.family.token_limit(receiver.config, layers)
        if told and window is not None and tokens - told[0].at > window:
            raise GeometryError(
                f"this session has gone on for {tokens - told[0].at} tokens since its first message, and "
                f"{receiver.spec.path!r} sees one within {window} only; begin another."
            )

    def _end(self, begun: _Begun, answer: Answer) -> Answer:
        """Keep what the turn has left."""
        if self.state is not begun.before:
            raise DataError("another turn of this session has ended while this one was answered; one turn at a time.")
        cache, slots = begun.cache, slots_of(begun.told)
        ids = begun.ids[: cache.mask.shape[1] - slots]  # after beams the answer is read with the next turn
        ended = begun.decoder.ended()
        if ended is not None:
            said, cache = ended
            ids = begun.ids + self._answered(said, answer.text)
        turns = (*begun.turns, (begun.said, answer.text))
        self.state = State(turns, tuple(ids), begun.told, cache.until(len(ids) + slots))
        return answer

    def _answered(self, said: list[int], text: str) -> list[int]:
        """The first tokens of those that were read which make up the answer: none behind what stops it."""
        tokenizer, stop = self.channel.link.receiver.tokenizer, self.channel.prompts.stop
        texts = (cut(str(tokenizer.decode(said[:n], skip_special_tokens=True)), stop) for n in range(len(said)))
        return said[: next((n for n, read in enumerate(texts) if read == text), len(said) - 1)]

    def save(self, file: str | Path) -> None:
        """Write the conversation to a file, aside and then renamed: what was said, what was heard, and the cache.

        Who can read the file can read the chat, and its messages.

        Raises:
            DataError: If there was no turn yet, or what was said cannot be written.
        """
        write_state(self.channel, self.state, Path(file))

    @classmethod
    def load(cls, channel: Channel, file: str | Path) -> Session:
        """The conversation that `save` wrote; it goes on bit for bit as if it had never stopped.

        Raises:
            SessionError: If the file cannot be read, is damaged or of another adapter or pair, or the receiver is held
                otherwise here.
            SettingError: If the channel has no receiver.
        """
        session = cls(channel)
        session.state = read_state(channel, Path(file))
        return session


def _no_objection() -> None:
    """Nothing was heard that could be refused."""


def _in_common(read: Sequence[int], prompt: Encoded) -> int:
    """With how many of the tokens that were read a prompt begins; what is read anew must have room for a message."""
    differing = (place for place, pair in enumerate(zip(read, prompt.ids, strict=False)) if pair[0] != pair[1])
    return max(0, min(next(differing, len(read)), prompt.ahead - 1))
