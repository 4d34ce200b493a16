"""Every example answered under every arm, written down as it happens, and continued where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import count, product
from pathlib import Path
from typing import Any

from lcf_lightning.data.batch import Batch
from lcf_lightning.errors import DataError, reason, unread
from lcf_lightning.evaluation.arms import find_arm
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import Prediction, digest, run_arms
from lcf_lightning.files import require_regular, write_file
from lcf_lightning.link import Link
from lcf_lightning.typed import from_table
from lcf_lightning.writer import Writer

_LONGEST = 2**24  # bytes of a line; what is longer is no answer


def read_predictions(file: Path) -> list[Prediction]:
    """The answers that a predictions file holds; none where there is no file.

    A last line that was cut off while being written, within a character too, is taken out of the file.

    Raises:
        DataError: If any other line is not an answer, or it is no file.
    """
    if not os.path.lexists(file):
        return []
    try:
        require_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {unread(error)}.") from error
    answers, whole, rest = [], 0, b""
    with file.open("rb") as lines:
        for number in count(1):
            line = lines.readline(_LONGEST)
            if not line.endswith(b"\n"):
                rest = line
                break
            answers.append(_answer(file, number, line))
            whole += len(line)
    if rest:
        begun = rest.startswith(b"{") or (whole and not rest.strip(b"\0"))  # zeros: a machine has lost its power
        if not begun or b"\r" in rest or len(rest) == _LONGEST:  # none that was being written
            raise DataError(f"{file}, line {number} is not an answer of this version.")
        write_file(file, lambda aside: aside.write_bytes(file.read_bytes()[:whole]))
    return answers


def _answer(file: Path, number: int, line: bytes) -> Prediction:
    try:
        data = json.loads(line.decode())
        json.dumps(data, ensure_ascii=False).encode()  # what no text file can hold is refused here
        return from_table(Prediction, data, "answer")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {number} is not an answer of this version: {reason(error)}") from error


def predict_all(
    link: Link,
    writer: Writer,
    batches: Iterable[Batch],
    arms: Sequence[str],
    max_new_tokens: int,
    file: Path,
    advance: Callable[[int], Any] = lambda count: None,
    answered: Iterable[Prediction] | None = None,
) -> list[Prediction]:
    """Answer what is not known yet, and append it to ``file`` arm by arm.

    Args:
        link: The pair and the adapter.
        writer: Its prompts.
        batches: Evaluation batches.
        arms: The arms.
        max_new_tokens: Longest answer, in receiver tokens.
        file: The predictions, one JSON object a line.
        advance: Called with the number of answers that each step has settled.
        answered: The answers there are, of which the last counts; null for those that ``file`` holds.

    Returns:
        The answers of these batches under these arms, whether new or known. One that was known answers this very
        example, with the message of this very partner; its id alone is not enough.
    """
    known = by_example(read_predictions(file) if answered is None else answered)
    file.parent.mkdir(parents=True, exist_ok=True)
    answers = []
    for batch in batches:
        rows = [digest(example) for example in batch.examples]
        partners = dict(zip(rows, map(digest, batch.partners), strict=False))

        stale = {
            (arm, row)
            for arm, row in product(arms, rows)
            if (arm, row) not in known or known[arm, row].partner not in ("", partners.get(row))
        }
        missing = [arm for arm in arms if any((arm, row) in stale for row in rows)]
        caches = ArmCaches(link, writer, batch.to(link.receiver.device))
        caches.write(max((find_arm(arm).budget for arm in missing), default=0))
        for arm in arms:
            if arm in missing:
                new = [row for row in run_arms(caches, [arm], max_new_tokens) if (arm, row.example) in stale]
                _append(file, new)
                known |= by_example(new)
            answers += [known[arm, row] for row in rows]
            advance(len(batch))
    return answers


def by_example(answers: Iterable[Prediction]) -> dict[tuple[str, str], Prediction]:
    """The last answer under each arm to each example, by their name and digest."""
    return {(answer.arm, answer.example): answer for answer in answers}


def keep(file: Path, answers: Iterable[Prediction]) -> None:
    """Append to a predictions file what it does not hold yet."""
    held = by_example(read_predictions(file))
    new = [row for key, row in by_example(answers).items() if key not in held or _line(held[key]) != _line(row)]
    if new:
        _append(file, new)


def _append(file: Path, answers: Iterable[Prediction]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write("".join(map(_line, answers)))


def _line(answer: Prediction) -> str:
    return f"{json.dumps(asdict(answer), ensure_ascii=False)}\n"
