"""`Decoding`: what a user may ask of transformers' ``generate``, checked before anything is read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from lcf_lightning.errors import SettingError, reason
from lcf_lightning.models.loading import FrozenModel

# What a channel decides itself, and what would change how many answers there are, or what they are.
_RESERVED = {
    "inputs", "input_ids", "inputs_embeds", "attention_mask", "past_key_values", "cache", "use_cache", "streamer",
    "generation_config", "num_return_sequences", "return_dict_in_generate", "max_length", "min_length",
    "eos_token_id", "pad_token_id", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens",
    "custom_generate", "trust_remote_code", "tokenizer", "output_logits", "output_scores", "output_attentions",
    "output_hidden_states",
}  # fmt: skip
_OF_CONFIG = {name for name in vars(GenerationConfig()) if name[0] != "_"} - {"transformers_version"}
_KNOWN = _OF_CONFIG | (signature(GenerationMixin.generate).parameters.keys() - {"self", "kwargs"})
_ELSEWHERE = {"stop": "stop_strings", "logprobs": "Channel.score"}
"""What servers call an option."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What `generate` looks at only where it samples."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is to be decoded.

    Attributes:
        config: Options of ``generate`` that its config knows.
        others: The rest of them.
        names: Those that were asked for.
        pad_id: What fills the rows of a batch that have ended; no token that ends one.
        stop: The text that ends an answer; None where nothing but a token does.
    """

    config: GenerationConfig
    others: dict[str, Any]
    names: list[str]
    pad_id: int
    stop: str | None = None

    @classmethod
    def of(cls, reader: FrozenModel, max_new_tokens: int, options: dict[str, Any], stop: str | None = None) -> Decoding:
        """Decoding options of transformers' ``generate``; greedy where they ask for nothing else.

        A warning, on the line that called the channel, names an option of sampling where ``do_sample`` is not given.

        Raises:
            SettingError: If an option is unknown, reserved or out of range.
        """
        for name in sorted(options.keys() & _RESERVED):
            raise SettingError(f"decoding option {name} is not to be set here.")
        _require_known(options)
        for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", options.get("num_beams", 1))):
            if type(value) is not int or value < 1:
                raise SettingError(f"{name}={value!r} must be a whole number of at least 1.")
        idle = [name for name in _SAMPLING if options.get(name)]  # a temperature of 0 asks for no sampling
        if idle and "do_sample" not in options:
            given = ", ".join(f"{name}={options[name]!r}" for name in idle)
            warnings.warn(f"{given} has no effect: without do_sample=True answers are greedy.", stacklevel=5)
        tokenizer, stops = reader.tokenizer, reader.stop_ids
        candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *range(len(stops) + 1))
        pad_id = next(token for token in candidates if token is not None and token not in stops)
        try:
            config = GenerationConfig(
                **{"do_sample": False, **{name: value for name, value in options.items() if name in _OF_CONFIG}},
                max_new_tokens=max_new_tokens,
                eos_token_id=list(stops),
                pad_token_id=pad_id,
            )
        except (ValueError, TypeError) as error:
            raise SettingError(f"decoding options {sorted(options)}: {reason(error)}") from error
        others = {name: value for name, value in options.items() if name not in _OF_CONFIG}
        return cls(config, others, sorted(options), pad_id, stop)


def _require_known(options: dict[str, Any]) -> None:
    """Raise a SettingError that names an option which `generate` does not have, and the one that was meant."""
    for name in sorted(options.keys() - _KNOWN):
        close = get_close_matches(name, {*_KNOWN, "stream"} - _RESERVED - {name}, 1, 0.75)
        close = [_ELSEWHERE[name]] if name in _ELSEWHERE else close
        meant = f"; did you mean {close[0]}?" if close else "."
        value = " ".join(repr(options[name]).split())
        raise SettingError(f"{name}={value:.60} is no decoding option here{meant}")
