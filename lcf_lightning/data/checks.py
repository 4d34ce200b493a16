"""What must hold of a data module's settings, and of the examples of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lcf_lightning.data.example import Example
from lcf_lightning.errors import DataError, SettingError


def require_examples(source: object, examples: Sequence[Example]) -> Sequence[Example]:
    """``examples``, if the first is an `Example`; else a DataError that names ``source``."""
    if len(examples) and not isinstance(examples[0], Example):
        raise DataError(f"source={source} gives {type(examples[0]).__name__}, and must give Example.")
    return examples


def require_read_by_both(source: object, examples: Sequence[Example]) -> Sequence[Example]:
    """``examples``, if none has passages that only one of the two reads; else a DataError that names ``source``."""
    dealt = next((example for example in examples if example.sharer or example.receiver), None)
    if dealt is not None:
        raise DataError(
            f"source={source} gives {dealt.id!r} passages of one side only; SharedContextDataModule "
            "needs a source whose examples both read, such as Chat, or else take ContextMismatchDataModule."
        )
    return examples


def require_ids(examples: Sequence[Example], split: str) -> Sequence[Example]:
    """``examples``, if no two are of one id, which an evaluation would count once; else a DataError that names both."""
    seen: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for example in examples:
        counts[example.benchmark] += 1
        here = f"example {counts[example.benchmark]}"
        here += f" of benchmark {example.benchmark!r}" if example.benchmark else ""
        if example.id in seen:
            raise DataError(
                f"{split} split: ids must differ; {example.id!r} is the id of {seen[example.id]} and of {here}."
            )
        seen[example.id] = here
    return examples


def require_at_least(least: int, **settings: int) -> None:
    """Raise a SettingError if one of some settings is below ``least``."""
    for name, value in settings.items():
        if value < least:
            raise SettingError(f"{name}={value} must be at least {least}.")


def require_same_batches(own: Mapping[str, Any], before: Mapping[str, Any], batch_size: int, processes: int) -> None:
    """Raise a SettingError if a fit that is continued would not draw the batches that it was drawing.

    Args:
        own: What the data module would save now.
        before: What it saved; releases of before say less.
        batch_size: Examples of a batch.
        processes: Data-parallel ranks.
    """
    if own["examples"] != before["examples"]:
        raise SettingError(
            f"batch_size={batch_size} on {processes} processes gives {own['examples']} examples at once; "
            f"to continue this fit it must be {before['examples']}, as it was."
        )
    grouped = before.get("group_by_length", False)
    if own["group_by_length"] != grouped:
        raise SettingError(f"group_by_length={own['group_by_length']} must be {grouped} to continue this fit.")
    if "train" in before and own["train"] != before["train"]:
        raise SettingError(
            f"train split has {own['train']} examples; to continue this fit it must have {before['train']}, as it had, "
            "for the order to be the same."
        )
