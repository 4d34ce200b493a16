"""Pairs of the paper's models with random weights, and random texts for them: what `paper_scale.py` measures.

Nothing is fetched. A step's time and memory depend on shapes and dtypes, not on what weights and texts say. The
tokenizer has one word for each token id, so a text of n words is n tokens long, and what a model writes can be read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from lcf_lightning.data.example import Example
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.spec import DTYPES, ModelSpec

_QWEN = {
    "vocab_size": 151_936, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32_768, **_QWEN,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960,
        **_QWEN,
    },
}  # fmt: skip
"""By hub id, what its ``config.json`` says that decides shapes."""
_TINY = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_END, _UNKNOWN = 0, 1
CHAT_TEMPLATE = (
    "{% for message in messages %}w2 {{ message.content }} w3 {% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
)


@dataclass(frozen=True)
class Lengths:
    """How long the texts are, in tokens.

    Attributes:
        passages: Of each side, where the two read different texts; 0 where they read the same, a question alone.
        passage: Of a passage.
        question: Of a question, or of a chat's last turn.
        answer: Of an answer.
        spread: Standard deviation of the logarithm of all of these over the examples; these are the medians then.
        most: No text is longer; null for any.
    """

    passages: int
    passage: int
    question: int
    answer: int
    spread: float = 0.0
    most: int | None = None

    def times(self, factor: float) -> Lengths:
        """All of them so many times as long, at least 2."""
        passage, question, answer = (
            max(2, round(part * factor)) for part in (self.passage, self.question, self.answer)
        )
        return Lengths(self.passages, passage, question, answer, self.spread, self.most)


def config_of(path: str, layers: int | None = None, tiny: bool = False) -> PretrainedConfig:
    """The config of one of `MODELS`, with fewer layers or with all of it tiny where that is asked for."""
    values = {**MODELS[path], **(_TINY if tiny else {})}
    return AutoConfig.for_model(**{**values, "num_hidden_layers": min(layers or 1_000, values["num_hidden_layers"])})


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for each id; the first ends a sequence, the second stands for what it does not know."""
    words = {word(token): token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(_UNKNOWN)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=word(_END), unk_token=word(_UNKNOWN))
    fast.chat_template = CHAT_TEMPLATE
    return fast


def word(token: int) -> str:
    """The word that is this token. A special token is found within words too, so none may begin with one."""
    return {_END: "<end>", _UNKNOWN: "<unknown>"}.get(token, f"w{token}")


@torch.no_grad()
def random_model(
    path: str, dtype: str, device: torch.device, layers: int | None = None, tiny: bool = False
) -> FrozenModel:
    """One of `MODELS` with random weights, made on ``device``; it never ends what it writes."""
    config = config_of(path, layers, tiny)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    model.to(device).eval().requires_grad_(False)
    model.get_input_embeddings().weight[_END] = 0  # tied: a logit of 0 is never the largest of so many
    model.generation_config = GenerationConfig(eos_token_id=_END)
    return FrozenModel(ModelSpec(path, dtype=dtype), model, tokenizer_of(config.vocab_size))


def examples(count: int, lengths: Lengths, vocabulary: int, seed: int = 0) -> list[Example]:
    """Random examples; where ``lengths`` has no passages, as both models read them."""
    drawn = random.Random(seed)

    def text(tokens: int) -> str:
        tokens = max(2, round(tokens * drawn.lognormvariate(0, lengths.spread)))
        ids = (drawn.randrange(_UNKNOWN + 1, vocabulary) for _ in range(min(tokens, lengths.most or tokens)))
        return " ".join(map(word, ids))

    def passages() -> tuple[tuple[str, ...], ...]:
        return tuple((text(lengths.passage),) for _ in range(lengths.passages))

    rows: Sequence[int] = range(count)
    return [Example(str(row), text(lengths.question), (text(lengths.answer),), passages(), passages()) for row in rows]
