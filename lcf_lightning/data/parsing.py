"""What a user of a channel says, as text or as a chat, in the terms of `PromptEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lcf_lightning.data.example import Passage
from lcf_lightning.data.prompts import History
from lcf_lightning.errors import DataError

Turn = Mapping[str, Any]
"""As OpenAI's chats have it: ``role``, and as ``content`` a text, or parts such as ``{"type": "text", "text": …}``,
which are lines of one text."""
Text = str | Sequence[str] | Sequence[Turn]
"""A text whose lines are passages, the passages themselves, or a chat whose turns are passages."""
Question = str | Sequence[Turn]
"""A question, or a chat that ends with it."""
_SYSTEM = ("system", "developer")


def parse_passages(text: Text) -> tuple[Passage, ...]:
    """The passages of a text, in sentences; blank ones are left out.

    Raises:
        DataError: If it is neither text, passages nor a chat.
    """
    if isinstance(text, str):
        text = [line.strip() for line in text.splitlines()]
    if isinstance(text, Mapping | bytes) or not isinstance(text, Sequence):
        raise DataError(f"{text!r:.60} must be a text, a list of passages, or a chat.")
    passages = [_checked(part) if isinstance(part, str) else _turn(part)[1] for part in text]
    return tuple(tuple(split_sentences(passage)) for passage in passages if passage.strip())


def split_sentences(text: str) -> list[str]:
    """Sentences that joined with nothing in between give ``text`` again: each keeps the blank before it."""
    return re.findall(r".+?(?:(?<=[.!?])(?=\s+[A-Z\"'(0-9])|\Z)", text, flags=re.DOTALL)


def spaced(sentences: Sequence[str]) -> Passage:
    """A passage of sentences, each after the first with one blank before it."""
    stripped = [sentence.strip() for sentence in sentences]
    return (*stripped[:1], *(f" {sentence}" for sentence in stripped[1:]))


def parse_question(question: Question) -> tuple[History, str]:
    """Earlier turns, and the question itself.

    What the system, or the developer, says stands before the first user turn, as in training (`Chat`).

    Raises:
        DataError: If a chat's turns are not ``role`` and ``content``, or do not alternate from user to user.
    """
    if isinstance(question, str):
        return (), _checked(question)
    if isinstance(question, Mapping | bytes) or not isinstance(question, Sequence):
        raise DataError(f"question={question!r:.60} must be a text, or a chat that ends with it.")
    turns = [_turn(turn) for turn in question]
    system = "".join(f"{text.strip()}\n\n" for role, text in turns if role in _SYSTEM and text.strip())
    turns = [turn for turn in turns if turn[0] not in _SYSTEM]
    roles = [role for role, _ in turns]
    if len(turns) % 2 == 0 or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise DataError(
            f"chat roles {roles} must be user and assistant by turns, from a user's turn to a user's turn; system "
            "turns may stand between."
        )
    said = [system + turns[0][1], *(text for _, text in turns[1:])]
    return tuple(zip(said[:-1:2], said[1:-1:2], strict=True)), said[-1]


def _turn(turn: object) -> tuple[str, str]:
    if isinstance(turn, Mapping):
        role, content = turn.get("role"), turn.get("content")
        parts = [content] if isinstance(content, str) else _parts(content)
        if isinstance(role, str) and parts is not None:
            return role, "\n".join(map(_checked, parts))
    raise DataError(
        f"{turn!r:.100} must be a text, or a chat's turn with a role and, as content, a text or parts of type text."
    )


def _parts(content: object) -> list[str] | None:
    """The texts of a content in parts; None if it is none, or a part is no text."""
    if not isinstance(content, list | tuple) or not content:
        return None
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    said = [text for text in texts if isinstance(text, str)]
    return said if len(said) == len(content) else None


def _checked(text: str) -> str:
    """``text``, if it is one: half of a surrogate pair is a character that no tokenizer knows."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{text!r:.60} is no text: {error.reason}.") from error
    return text
