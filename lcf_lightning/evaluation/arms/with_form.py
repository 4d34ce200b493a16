"""Text with the tuning that a message has: the receiver also gets another example's message, which holds no news."""

from __future__ import annotations

from lcf_lightning.errors import GeometryError, SettingError
from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.arms.text_to_text import TextToText
from lcf_lightning.evaluation.arms.texts import FullContext
from lcf_lightning.evaluation.caches import ArmCaches, Reading


class WithForm(Arm):
    """T2T-N or full context, and the message of the example's partner: what the adapter teaches of the answers' form.

    Args:
        text: The text arm.
    """

    family = "text"
    needs_different_texts = True
    note = (
        "*+ form*: the receiver also gets another example's message, as under *mismatched*: what the adapter teaches "
        "of the form of answers, and content that is not about its question. The message is compared with the better "
        "of a text with and without form, looked up on the same questions."
    )

    def __init__(self, text: Arm) -> None:
        self.text, self.without_form = text, text.name
        self.name, self.budget, self.place = f"{text.name}_form", text.budget, text.place
        own = {text.name: self.name}
        self.comparisons = tuple(
            (f"{name}_form", own.get(first, first), own.get(second, second)) for name, first, second in text.comparisons
        )

    @classmethod
    def named(cls, name: str) -> Arm | None:
        plain = name.removesuffix("_form")
        text = TextToText.named(plain) or FullContext.named(plain)
        return cls(text) if text is not None and plain != name else None

    @classmethod
    def usual(cls) -> list[Arm]:
        return [cls(text) for kind in (FullContext, TextToText) for text in kind.usual()]

    def read(self, caches: ArmCaches) -> Reading:
        try:
            return caches.receives_partners(self.text.read(caches))
        except GeometryError as error:  # text and message together may be too long
            raise SettingError(f"arm {self.name!r} must be left out (--arms): {error}") from error
