"""Several sources as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcf_lightning.data.example import Example
from lcf_lightning.data.sources.source import Source, Split
from lcf_lightning.errors import SettingError


class Mixture(Source):
    """The examples of several sources, one source after the other; training shuffles them.

    Args:
        sources: At least one.

    Raises:
        SettingError: If there is none.
    """

    def __init__(self, sources: list[Source]) -> None:
        if not sources:
            raise SettingError("sources=[] must name at least one source.")
        self.sources = sources
        self.mismatched = any(source.mismatched for source in sources)

    def __str__(self) -> str:
        return f"Mixture of {', '.join(map(str, self.sources))}"

    def examples(self, split: Split, seed: int) -> Sequence[Example]:
        return [
            replace(example, id=f"{place}/{example.id}")  # two sources may count their rows alike
            for place, source in enumerate(self.sources)
            for example in source.examples(split, seed)
        ]
