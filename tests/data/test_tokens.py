"""Batches of token ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcf_lightning.data.tokens import Encoded, pad_left
from tests.data.conftest import PASSAGES, QUESTION, encoder


def test_padding_is_on_the_left() -> None:
    tokens = pad_left([Encoded([5, 6, 7], [0, 0, 1]), Encoded([8], [0]), Encoded([9, 9], [-1, 0])], pad_id=1)
    assert tokens.ids.tolist() == [[5, 6, 7], [1, 1, 8], [1, 9, 9]]
    assert tokens.mask.tolist() == [[True, True, True], [False, False, True], [False, True, True]]
    assert tokens.spans.tolist() == [[0, 0, 1], [-1, -1, 0], [-1, -1, 0]]
    assert (tokens.ids.dtype, tokens.mask.dtype, tokens.spans.dtype) == (torch.long, torch.bool, torch.long)


def test_a_padded_batch_holds_each_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [encoder(tokenizer).prompt(PASSAGES[:count], QUESTION) for count in (0, 1, 3)]
    tokens = pad_left(prompts, 0)
    for row, prompt in enumerate(prompts):
        assert tokens.ids[row][tokens.mask[row]].tolist() == prompt.ids
        assert tokens.spans[row][tokens.mask[row]].tolist() == prompt.spans
    assert tokens.ids.shape == tokens.mask.shape == tokens.spans.shape == (3, len(prompts[-1].ids))


def test_padding_needs_no_padding_token(model_folders: dict[str, Path]) -> None:
    own = AutoTokenizer.from_pretrained(model_folders["llama"])
    with_token = encoder(own)
    assert with_token.pad_id == own.pad_token_id != own.eos_token_id
    own.pad_token = None
    assert replace(with_token, tokenizer=own).pad_id == own.eos_token_id
