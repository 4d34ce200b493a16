"""`PromptSettings`: the one place where the text around passages and questions is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from lcf_lightning.data.alignment import STRATEGIES
from lcf_lightning.data.spans import parse_span_mode
from lcf_lightning.errors import SettingError

TEXT_PLACES = ("after", "before")
READS = ("own", "receiver_tokens")
REREADS = ("question", "prompt")


@dataclass(frozen=True)
class PromptSettings:
    """How examples become prompts: the one place where the text around passages and questions is written.

    Attributes:
        context: Around all passages; must hold ``{passages}``.
        separator: After each passage.
        question: After the context; must hold ``{question}``.
        answer: Around the answer that follows the question; must hold ``{answer}``.
        answer_prefix: How the answer begins, such as ``The correct answer is``: stands as it is behind the question, in
            a chat behind the template's opening of the answer. It is read, after a message, and not scored; the answer
            follows it as ``answer`` says, blanks included. Earlier turns of a chat have none. Null for none.
        chat: Wrap context and question as one user turn of the tokenizer's chat template.
        share_question: Whether the sharer sees the question, after its passages and as a span of its own.
        sharers: Sharers that an example's passages are spread over, in order; each sends a message of its own, and
            the receiver takes their spans together. A training batch has between 1 and this many.
        spans: What gets a summary of its own in a message: ``paragraph``, ``sentence`` or ``window:N`` (N tokens).
        max_sharer_tokens: Limit of the sharer's prompt; whole spans are dropped from the end of its context until the
            prompt fits, never the question. Where both models read the same text nothing is dropped from it: training
            and validation leave longer examples out. Null for none.
        max_receiver_tokens: Limit of the receiver's prompt; likewise, without the tokens that a message puts before it.
        max_total_tokens: Where both models read the same text: training and validation leave out examples whose prompt
            and answer together have more tokens, in either model's, as the papers count. Null for none.
        max_answer_tokens: Score only so many tokens of a longer answer. Null for all.
        alignment: Where both models read the same text in different tokens: ``first`` or ``longest``, see `align`.
        sharer_reads: Where both models read the same text: the sharer its ``own`` tokens of it, or ``receiver_tokens``,
            the very ids that the receiver reads, template included, as in C2C's Qwen pairs; for two models of one
            vocabulary. Where it answers by itself or writes a text it reads its own.
        text_request: After the sharer's context where it is asked to write a text instead (T2T); may hold
            ``{question}``, which is the question where ``share_question`` and empty where not.
        text_chat: Whether that request is a user turn of the sharer's chat template, even where ``chat`` is false.
        text: How that text enters the receiver's prompt; must hold ``{text}``.
        text_place: ``after`` the receiver's own context, which it can read while the text is being written, or
            ``before`` it.
        reread: What the receiver reads after the message has come, so that every token of it can see the message:
            ``question``, or ``prompt``, its own passages too; what stands before is read ahead. Null: only the last
            token sees the message.
        send_tokens: The sharer sends at most so many tokens, of its passages: those that the question pays most
            attention to as the sharer reads it. Needs ``share_question``. Null for all tokens, the question's too.
        stop: What ends an answer, in evaluation and in `Channel.receive`; null where nothing but the end of sequence
            does, as in chats.
    """

    context: str = "{passages}\n"
    separator: str = "\n"
    question: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    answer_prefix: str | None = None
    chat: bool = False
    share_question: bool = True
    sharers: int = 1
    spans: str = "paragraph"
    max_sharer_tokens: int | None = None
    max_receiver_tokens: int | None = None
    max_total_tokens: int | None = None
    max_answer_tokens: int | None = None
    alignment: str = "longest"
    sharer_reads: str = "own"
    text_request: str = "Question: {question}\nSummary of the text above, for somebody who has to answer:\n"
    text_chat: bool = False
    text: str = "{text}\n"
    text_place: str = "after"
    reread: str | None = None
    send_tokens: int | None = None
    stop: str | None = "\n"

    def __post_init__(self) -> None:
        slots = {"context": "{passages}", "question": "{question}", "answer": "{answer}", "text": "{text}"}
        for name, slot in slots.items():
            if getattr(self, name).count(slot) != 1:
                raise SettingError(f"{name}={getattr(self, name)!r} must hold {slot} exactly once.")
        parse_span_mode(self.spans)
        if self.sharers < 1:
            raise SettingError(f"sharers={self.sharers} must be at least 1.")
        if self.alignment not in STRATEGIES:
            raise SettingError(f"alignment={self.alignment!r} must be one of {', '.join(STRATEGIES)}.")
        if self.sharer_reads not in READS:
            raise SettingError(f"sharer_reads={self.sharer_reads!r} must be one of {', '.join(READS)}.")
        if self.text_place not in TEXT_PLACES:
            raise SettingError(f"text_place={self.text_place!r} must be one of {', '.join(TEXT_PLACES)}.")
        if self.reread is not None and self.reread not in REREADS:
            raise SettingError(f"reread={self.reread!r} must be one of {', '.join(REREADS)}, or null.")
        if self.answer_prefix == "":
            raise SettingError("answer_prefix='' must be some text, or null for none.")
        if self.stop == "":
            raise SettingError("stop='' must be some text, or null for none.")
        if self.send_tokens is not None and not self.share_question:
            raise SettingError(f"send_tokens={self.send_tokens} must be null where share_question is false.")
        for name in (
            "send_tokens",
            "max_sharer_tokens",
            "max_receiver_tokens",
            "max_total_tokens",
            "max_answer_tokens",
        ):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise SettingError(f"{name}={limit} must be at least 1, or null for no limit.")
