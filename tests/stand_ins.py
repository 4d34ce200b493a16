"""What stands in for the hub where a command of a page or a shipped config asks for it: small models, a few rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import byte_tokenizer
from tests.data.sources.rows import babi_story, hub_row, squad_hub_row
from tests.distributed.test_paper_configs import chat_row
from tests.pages import STAND_INS


def choice_row(index: int) -> dict[str, object]:
    return {"id": f"m{index}", "question": f"{index}?", "choices": ["one", "two"], "answer": index % 2}


def dolly_row(index: int) -> dict[str, object]:
    return {"instruction": f"How many is {index} and one?", "context": "", "response": f"It is {index + 1}."}


SHAPED: dict[str, Callable[[int], dict[str, Any]]] = {
    "hotpotqa/hotpot_qa": hub_row, "teknium/OpenHermes-2.5": chat_row, "facebook/babi_qa": babi_story,
    "databricks/databricks-dolly-15k": dolly_row, "rajpurkar/squad": squad_hub_row,
}  # fmt: skip
"""By data set of the hub, rows of its shape; those of others are of multiple choice."""


@functools.cache
def load_dataset(location: str, *args: str, load: Callable[..., Any] = datasets.load_dataset, **options: Any) -> Any:
    """The first rows of a local file; instead of a data set of the hub, rows of its shape."""
    if "data_files" in options:
        rows = load(location, *args, **options)
        return rows.select(range(min(600, len(rows))))
    shaped = SHAPED.get(location, choice_row)
    return datasets.Dataset.from_list([shaped(index) for index in range(600)])


def load_anything(*args: Any, load: Callable[..., Any] = datasets.load_dataset, **options: Any) -> Any:
    """As `load_dataset`; what lm_eval asks for, which names its path, is a local file and read as it is."""
    return load(**options) if "path" in options else load_dataset(*args, **options)


def write_models(root: Path) -> Path:
    """A folder of small random models, each at its hub id."""
    for seed, (name, kind) in enumerate(STAND_INS.items()):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            kind, vocab_size=40_960, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        byte_tokenizer(300 + 10 * seed).save_pretrained(root / name)
    return root
