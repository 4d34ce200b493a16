"""Instruction–response chats: OpenHermes-2.5, Dolly, and data sets of their shapes."""

from __future__ import annotations

from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.data.sources.source import RowSource, row_id
from lcf_lightning.errors import SettingError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Chat(RowSource):
    """Chats that both models read up to the last response, which is scored.

    A row holds ``conversations`` (``from``, ``value``; OpenHermes, ShareGPT), ``messages`` (``role``, ``content``), or
    ``instruction`` with ``output`` or ``response``, and perhaps an ``input`` or ``context`` (Alpaca, Dolly). Earlier
    turns become the example's history; what the system says stands before the first user turn.

    Args:
        train: Hub id or local file.
        test: The same, for the test split; by default that is the validation split.
        validation_size: Rows of the training split to hold out for validation, or, below 1, their fraction.
        train_limit: Use only the first so many rows; null for all.
        test_limit: Use at most so many test rows; null for all.
    """

    def __init__(
        self,
        train: str = "teknium/OpenHermes-2.5",
        test: str | None = None,
        validation_size: float = 0.01,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__(train, test, validation_size, None, test_limit)
        if train_limit is not None and train_limit < 2:
            raise SettingError(f"train_limit={train_limit} must be at least 2, or null for no limit.")
        self.hub_splits = (f"train[:{train_limit}]" if train_limit else "train", "test")

    def to_example(self, row: dict[str, Any], seed: int) -> Example:
        turns, context = _turns(row)
        if len(turns) % 2 or any(role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(turns)):
            raise ValueError(f"turns {[role for role, _ in turns]}: user and assistant must take turns")
        said = [text.strip() for _, text in turns]
        passages = ((context.strip(),),) if context.strip() else ()
        return Example(
            id=row_id(row, turns, context),
            question=said[-2],
            answers=(said[-1],),
            shared=passages,
            history=tuple(zip(said[:-2:2], said[1:-2:2], strict=True)),
            open_ended=True,
        )


def _turns(row: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """Role and text of each turn from the user's first to the assistant's last, and the context."""
    listed = row.get("conversations") or row.get("messages")
    if not listed:
        instruction = row["instruction"]
        turns = [("user", instruction), ("assistant", row["response"] if row.get("output") is None else row["output"])]
        return turns, row.get("input") or row.get("context") or ""
    turns = [
        (_ROLES[turn.get("from") or turn["role"]], turn["value"] if "from" in turn else turn["content"])
        for turn in listed
    ]
    system = "".join(f"{text.strip()}\n\n" for role, text in turns if role == "system" and text.strip())
    turns = [turn for turn in turns if turn[0] != "system"]
    while turns and turns[-1][0] != "assistant":
        turns.pop()  # a question that nobody answered
    if not turns:
        raise ValueError("no assistant turn")
    return [(turns[0][0], system + turns[0][1]), *turns[1:]], ""
