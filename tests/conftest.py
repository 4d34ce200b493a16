"""Tiny random models that differ in depth, KV heads, head size and vocabulary, as folders on disk."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from xdist.scheduler import LoadFileScheduling

from lcf_lightning import ModelSpec

torch.set_num_threads(1)  # for tensors this small more threads only wait for each other

DATA = Path(__file__).parents[2] / "shared" / "data"
CORPUS = ["The sharer has read something that the receiver has not.", "Where is Mary? Mary moved to the bathroom."] * 20
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _llama(vocabulary: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    ))  # fmt: skip


def _qwen2(vocabulary: int) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1,
    ))  # fmt: skip


def _qwen3(vocabulary: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=6,
    ))  # fmt: skip


def _gemma3(vocabulary: int) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=6, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ))  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[int], PreTrainedModel], int]] = {
    "llama": (_llama, 300), "qwen2": (_qwen2, 310), "qwen3": (_qwen3, 320), "gemma3": (_gemma3, 330)
}  # fmt: skip


def byte_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows any text, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process of the tests is left alone with them at the end."""
    items.sort(key=lambda item: "test_quickstart" not in item.nodeid)


class _FilesAndPages(LoadFileScheduling):
    """A file's tests share a process, and what they have made; of the commands in the docs those of a page do."""

    def _split_scope(self, nodeid: str) -> str:
        page = re.match(r"tests/test_docs\.py::test_it_runs\[([\w.]+\.md): ", nodeid)
        return page[1] if page else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _FilesAndPages(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per model family, as transformers saves it."""
    root = tmp_path_factory.mktemp("models")
    for index, (name, (build, vocabulary)) in enumerate(FAMILIES.items()):
        torch.manual_seed(index)
        tokenizer = byte_tokenizer(vocabulary)
        build(len(tokenizer)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def spec(model_folders: dict[str, Path]) -> Callable[[str], ModelSpec]:
    """From a family's name to its spec."""
    return lambda name: ModelSpec(str(model_folders[name]))


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole quickstart: minutes, for slow tests."""
    from lcf_lightning.cli import main

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # once for all processes of the tests
    folder = root / "clone" / "runs" / "quickstart"
    config = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
    quiet = ["--trainer.enable_progress_bar", "false"]
    with FileLock(root / "quickstart.lock"):
        if not (folder / "summary.json").is_file():
            main(["fit", "--config", str(config), "--trainer.default_root_dir", str(folder), *quiet])
    return folder


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """A test leaves the environment, torch's gradient mode and the process's limit of memory as they were."""
    before, gradients, memory = dict(os.environ), torch.is_grad_enabled(), resource.getrlimit(resource.RLIMIT_AS)
    yield
    # Trainer sets these for its own children; Lightning's own suite lets them pass too. The last is scikit-learn's.
    allowed = {"PL_GLOBAL_SEED", "PL_SEED_WORKERS", "PYTEST_CURRENT_TEST", "TOKENIZERS_PARALLELISM"}
    allowed |= {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
    allowed.add("PYTORCH_NVML_BASED_CUDA_CHECK")  # what Lightning sets when it is imported
    # What lm_eval and scikit-learn, which it brings, set when they are imported.
    allowed |= {"HF_XET_HIGH_PERFORMANCE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
    leaked = {key for key in os.environ.keys() ^ before.keys() if key not in allowed}
    assert not leaked, f"environment variables leaked: {leaked}"
    assert torch.is_grad_enabled() == gradients
    assert resource.getrlimit(resource.RLIMIT_AS) == memory
