"""`Writer`: prompts for both models of a pair, and the text of what they generate. It knows tokenizers and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcf_lightning.data.batch import Collator
from lcf_lightning.data.example import Passage
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.prompts import Earlier, PromptEncoder
from lcf_lightning.data.shared import SharedCollator
from lcf_lightning.data.tokens import Encoded
from lcf_lightning.link import Link, Role, spec_of
from lcf_lightning.models.spec import ModelSpec, load_tokenizer


class Writer:
    """Writes prompts for a pair and reads its answers.

    Args:
        tokenizers: Each side's tokenizer, or where it is loaded from when it is first needed: a side whose model is not
            here needs one only where both read the same text, to align it.
        shared: Whether both models read the same text (LCF, C2C); else they read different ones (LCF-X).
    """

    def __init__(self, tokenizers: Mapping[Role, PreTrainedTokenizerBase | ModelSpec], shared: bool) -> None:
        self.shared, self._tokenizers = shared, dict(tokenizers)

    @classmethod
    def of(cls, link: Link) -> Writer:
        """The writer of a link's pair."""
        config = link.adapter.config
        specs: dict[Role, ModelSpec] = {"sharer": spec_of(config.sharer), "receiver": spec_of(config.receiver)}
        return cls(specs | {role: side.model.tokenizer for role, side in link.sides.items()}, link.shared)

    def tokenizer(self, role: Role) -> PreTrainedTokenizerBase:
        """One side's tokenizer."""
        tokenizer = self._tokenizers[role]
        if isinstance(tokenizer, ModelSpec):
            tokenizer = self._tokenizers[role] = load_tokenizer(tokenizer)
        return tokenizer

    def collator(self, prompts: PromptSettings) -> Collator:
        """Makes batches of examples."""
        kind = SharedCollator if self.shared else Collator
        return kind.of(prompts, self.tokenizer("sharer"), self.tokenizer("receiver"))

    def encoder(self, prompts: PromptSettings, role: Role) -> PromptEncoder:
        """Writes prompts for one side."""
        return PromptEncoder(self.tokenizer(role), prompts, f"max_{role}_tokens")

    def prompts(
        self,
        role: Role,
        settings: PromptSettings,
        texts: Sequence[tuple[Passage, ...]],
        questions: Sequence[tuple[Earlier, str | None]],
        unlimited: bool = False,
    ) -> list[Encoded]:
        """One side's prompts of some texts and questions, each with the earlier turns of its chat.

        Args:
            role: Whose prompts.
            settings: How they are written.
            texts: The passages of each.
            questions: Earlier turns, and the question or None.
            unlimited: Whether token limits do not hold.
        """
        encoder = self.encoder(settings, role)
        encoder = encoder.unlimited() if unlimited else encoder
        return [
            encoder.prompt(text, question, history=history)
            for text, (history, question) in zip(texts, questions, strict=True)
        ]

    def pad_id(self, role: Role) -> int:
        """What fills one side's batches."""
        return self.encoder(PromptSettings(), role).pad_id

    def texts(self, ids: Tensor, role: Role) -> list[str]:
        """What ``ids`` ``[batch, tokens]`` say, without special tokens and the blanks around it."""
        texts: list[str] = self.tokenizer(role).batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]
