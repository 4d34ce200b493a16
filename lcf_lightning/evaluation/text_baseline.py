"""T2T, the baseline: the sharer writes a text, token by token, and the receiver reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcf_lightning.data.batch import Batch
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.tokens import Prompt, Tokens, split_last
from lcf_lightning.link import Link
from lcf_lightning.models.cache import KVCache
from lcf_lightning.models.decoding import generate
from lcf_lightning.writer import Writer


def text_prompts(
    link: Link, writer: Writer, prompts: PromptSettings, examples: Sequence[Example]
) -> tuple[Tokens, Tensor]:
    """What the sharer reads before it writes, its context and ``text_request``: all but the last token, and it."""
    encoder = writer.encoder(prompts, "sharer").unlimited()  # the request must not push the context out
    encoded = [encoder.text_prompt(example.sharer_reads, example.question, example.history) for example in examples]
    return split_last(encoded, encoder.pad_id, link.sharer.device)


def write_texts(link: Link, cache: KVCache, last: Tensor, budget: int, static_size: int | None = None) -> Tensor:
    """The sharer's texts, decoded greedily on its prefill: ``[batch, ≤ budget]``, int64.

    The first ``n`` tokens are what a budget of ``n`` would have given. ``static_size``: see `generate`.
    """
    return generate(link.sharer, cache, last, budget, static_size=static_size)


def write_at_once(link: Link, tokens: Tokens, last: Tensor, budget: int) -> Tensor:
    """What `write_texts` gives, by plain ``generate`` of the prompt, which saves a step: for one example.

    Args:
        link: The pair.
        tokens: One prompt, see `text_prompts`.
        last: ``[1, 1]``, int64: its last token.
        budget: Tokens that the sharer may write.
    """
    prompt, stops = torch.cat([tokens.ids, last], dim=1), list(link.sharer.stop_ids)
    ids: Tensor = link.sharer.model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=budget,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    return ids[:, prompt.shape[1] :]


def reading_prompts(
    link: Link, writer: Writer, prompts: PromptSettings, examples: Sequence[Example], texts: Sequence[str]
) -> Prompt:
    """What the receiver reads of each text, its own context and the question.

    ``prompts.max_receiver_tokens`` does not hold here: the text must not push the receiver's own context out.
    """
    encoder = writer.encoder(prompts, "receiver").unlimited()
    encoded = [
        encoder.prompt(example.receiver_reads, example.question, text, example.history)
        for example, text in zip(examples, texts, strict=True)
    ]
    return encoder.split(encoded, link.receiver.device)


def read_ahead(batch: Batch, told: Tokens) -> int:
    """How many tokens of a prompt with a text the receiver can read while that text is being written.

    Those that its prompt without the text begins with too; none where the text stands before its own context.

    Args:
        batch: One example.
        told: What it reads before the question, of what `reading_prompts` gives for it.
    """
    if batch.prompts.text_place == "before":
        return 0
    width = min(told.ids.shape[1] - 1, batch.receiver.ids.shape[1])  # something is left to read with the text
    differ = (told.ids[0, :width] != batch.receiver.ids[0, :width]).nonzero()
    return int(differ[0]) if len(differ) else width
