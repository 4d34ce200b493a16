"""Two evaluations against each other, question by question."""

from __future__ import annotations

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.audit import paired
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.statistics import Corrected, corrected


def compare_reports(first: list[Prediction], second: list[Prediction], arm: str) -> dict[str, Corrected]:
    """One arm of two evaluations, paired by id, on questions that need the sharer.

    Under ``all`` and each benchmark, and ``own questions`` for those that the receiver can answer alone: one family of
    tests.

    Raises:
        DataError: If either has no answer under that arm, or they did not answer the same questions, or not in the same
            form.
    """
    one, other = ({row.id: row for row in answers if row.arm == arm} for answers in (first, second))
    if not one or not other:
        arms = sorted({row.arm for row in first} & {row.arm for row in second})
        raise DataError(f"arm={arm!r} must be one that both evaluations have: {', '.join(arms) or 'they share none'}.")
    unpaired = sorted(one.keys() ^ other.keys())
    if unpaired:
        raise DataError(
            f"the evaluations did not answer the same questions: {len(one.keys() - other.keys())} only in the first, "
            f"{len(other.keys() - one.keys())} only in the second, such as {unpaired[0]!r}."
        )
    unlike = [id for id, row in one.items() if not _same(row, other[id])]
    if unlike:
        raise DataError(
            f"{len(unlike)} ids name another question or answer in the other evaluation, such as {unlike[0]!r}."
        )
    names = sorted({row.benchmark for row in one.values()} - {""})
    need = {id: row for id, row in one.items() if row.needs_sharer}
    groups = {"all": need, **{name: {id: row for id, row in need.items() if row.benchmark == name} for name in names}}
    groups["own questions"] = {id: row for id, row in one.items() if not row.needs_sharer}
    return corrected({name: paired(rows, other) for name, rows in groups.items() if rows})[0]


def _same(row: Prediction, other: Prediction) -> bool:
    """Whether two answers are to one question, as far as that is known: 0.1.0 wrote no digest of it down."""
    return row.answers == other.answers and ("" in (row.example, other.example) or row.example == other.example)
