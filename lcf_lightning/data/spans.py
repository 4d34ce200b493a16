"""What gets a summary of its own in a message."""

from __future__ import annotations

import re

from lcf_lightning.errors import SettingError


def parse_span_mode(mode: str) -> tuple[str, int]:
    """``paragraph``, ``sentence`` or ``window:N`` as a kind and N (0 where there is none).

    Raises:
        SettingError: If the mode is none of these.
    """
    window = re.fullmatch(r"window:([1-9][0-9]{0,8})", mode)
    if window:
        return "window", int(window[1])
    if mode in ("paragraph", "sentence"):
        return mode, 0
    raise SettingError(f"spans={mode!r} must be paragraph, sentence or window:N with N ≥ 1 tokens.")
