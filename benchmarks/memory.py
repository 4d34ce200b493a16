"""What a training step and a validation of the paper's runs hold in memory, without a GPU or a weight.

    python benchmarks/memory.py                                       # the paper's four configs
    python benchmarks/memory.py --configs my_run.yaml --prompt 700 --answer 32

Both models in their own geometry and dtype, the adapter, and the module's own `training_step` and `validation_step`, on
tensors that have shapes and no contents: nothing is computed, and each storage is counted while it lives. Prompts and
answers are as long as the config allows. Prints a table in 10⁹ bytes:

    weights     of both models, in their dtype
    adapter     its parameters and their gradients in float32, and AdamW's two moments
    kept        what a forward pass keeps for its backward pass, without weights and what the batch holds
    training    the most that a step holds, kept or not, besides the first two
    validation  likewise, with the arms own_context, message and mismatched

What CUDA's context, its libraries and the gaps of its allocator take comes on top. Autocast is the CPU's.
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from random_pair import MODELS, config_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from lcf_lightning import LCFModule, ModelSpec
from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.params import COMMAND
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import answer_losses
from lcf_lightning.link import Link
from lcf_lightning.models.loading import FrozenModel
from lcf_lightning.models.spec import DTYPES, from_pretrained

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = ("qwen_openhermes_lcf128", "qwen_openhermes_lcf256", "qwen_openhermes_c2c", "qwen3_hotpotqa_lcfx")
PROMPT, ANSWER, SPANS = 900, 32, 5
"""Tokens where a config sets no limit: five paragraphs of HotpotQA, a question and a short answer."""


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that live, inside a `FakeTensorMode`.

    Tensors there have no contents. Who asks one of a number is told that it is true, 0.0, or the last span's, which is
    a place in every batch; every entry is one that is not zero.

    Attributes:
        bytes: Of what lives now.
        most: The most that lived at once since it was last set.
    """

    def __init__(self, spans: int) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._spans, self._known = spans, weakref.WeakValueDictionary[int, Any]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.0 if dtype.is_floating_point else self._spans - 1
        if func is torch.ops.aten.nonzero.default:
            return torch.arange(args[0].numel())[:, None]
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage
        weakref.finalize(storage, self._gone, storage.nbytes())
        self.bytes += storage.nbytes()
        self.most = max(self.most, self.bytes)

    def _gone(self, size: int) -> None:
        self.bytes -= size


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts what is kept for a backward pass, each storage once, without those that are known before."""

    def __init__(self, known: set[int]) -> None:
        self.sizes: dict[int, int] = {}
        self._known = known
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self.sizes[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


class Memory(NamedTuple):
    """Bytes, as at the head of this file."""

    weights: int
    adapter: int
    kept: int
    training: int
    validation: int


def frozen(spec: ModelSpec) -> FrozenModel:
    """A model by its config, without its weights and tokenizer."""
    config = config_of(spec.path) if spec.path in MODELS else from_pretrained(AutoConfig, spec)
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[spec.dtype])
    return FrozenModel(spec, model.eval().requires_grad_(False), None)  # type: ignore[arg-type]


class WithoutTrainer(LCFModule):
    """A module whose steps can be called as they are."""

    device = torch.device("cpu")  # type: ignore[assignment]
    temperature = 1.0  # type: ignore[assignment]
    val_loss = SimpleNamespace(update=lambda losses: None)
    writer = SimpleNamespace(collator=lambda settings: None)  # type: ignore[assignment]

    def log(self, *args: Any, **options: Any) -> None:
        pass


def batch_of(rows: int, prompt: int, answer: int, spans: int) -> Batch:
    """A batch of so many tokens a row, all real; of what it says there is nothing."""
    ids, mask = torch.zeros(rows, prompt - 1, dtype=torch.long), torch.ones(rows, prompt - 1, dtype=torch.bool)
    answers = torch.zeros(rows, answer, dtype=torch.long)
    tokens, none = Tokens(ids, mask, ids), Tokens(ids[:, :0], mask[:, :0], ids[:, :0])
    last, there = ids[:, :1], torch.ones(rows, answer, dtype=torch.bool)
    return Batch((), None, tokens, ids, tokens, none, last, answers, there, 0)  # type: ignore[arg-type]


def measure(config: FitConfig, prompt: int, answer: int, spans: int = SPANS) -> Memory:
    """What the runs of a config hold; ``prompt`` and ``answer`` are tokens where it sets no limit.

    Where it limits prompt and answer together: the more of what a longest answer and what a short one takes.
    """
    limits = config.values["data"]["init_args"]["prompts"]
    answer, total = limits["max_answer_tokens"] or answer, limits["max_total_tokens"]
    answers = (answer, min(answer, ANSWER)) if total else (answer,)
    prompts = [total - tokens if total else limits["max_receiver_tokens"] or prompt for tokens in answers]
    found = [_measured(config, *lengths, spans) for lengths in zip(prompts, answers, strict=True)]
    return Memory(*map(max, zip(*found, strict=True)))


def _measured(config: FitConfig, prompt: int, answer: int, spans: int) -> Memory:
    """What the runs of a config hold with prompts and answers of so many tokens."""
    data, lengths = config.values["data"]["init_args"], (prompt, answer, spans)
    live = Live(spans)
    with torch.device("meta"):
        module = config.module()
    module.__class__ = WithoutTrainer
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        module.adapter.to_empty(device="cpu")
        specs = {spec.path: spec for spec in (module.sharer, module.receiver)}
        models = {path: frozen(spec) for path, spec in specs.items()}
        weights = sum(p.numel() * p.element_size() for model in models.values() for p in model.model.parameters())
        module._link = Link(models[module.sharer.path], models[module.receiver.path], module.adapter)
        adapter = 0
        for parameter in module.adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
            adapter += 4 * parameter.numel() * parameter.element_size()
        kept, training = _trained(module, live, batch_of(data["batch_size"], *lengths))
        validation = _validated(module.eval(), live, batch_of(data["eval_batch_size"], *lengths))
    return Memory(weights, adapter, kept, training, validation)


def _trained(module: LCFModule, live: Live, batch: Batch) -> tuple[int, int]:
    """What a step keeps for its backward pass, and the most that it holds."""
    held = [*module.adapter.parameters(), *batch.receiver.__dict__.values(), batch.answers, batch.answer_mask]
    held += [tensor for side in module.link.sides.values() for tensor in side.model.model.state_dict().values()]
    kept = Kept({tensor.untyped_storage()._cdata for tensor in held if isinstance(tensor, Tensor)})
    before = live.most = live.bytes
    with torch.autocast("cpu", torch.bfloat16, enabled=True):
        with kept:
            loss = module.training_step(batch, 0)
        loss.backward()
    return kept.bytes, live.most - before


def _validated(module: LCFModule, live: Live, batch: Batch) -> int:
    """The most that a validation of three arms holds."""
    before = live.most = live.bytes
    with torch.no_grad():
        caches: ArmCaches = module.validation_step(batch, 0)["caches"]
        caches.partner_message = module.link.pool(module.link.read_sharer(batch.sharer), batch.index)
        for reading in (caches.own_context, caches.message, caches.receives(caches.partner_message)):
            answer_losses(module.link, reading, batch)
    return live.most - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", type=Path, default=[CONFIGS / f"{name}.yaml" for name in PAPER])
    parser.add_argument("--prompt", type=int, default=PROMPT, help="tokens, where a config sets no limit")
    parser.add_argument("--answer", type=int, default=ANSWER, help="likewise")
    args, options = parser.parse_known_args()
    print(f"{'config':<24}" + "".join(f"{name:>12}" for name in Memory._fields))
    for file in args.configs:
        values = config_parser(COMMAND).parse_args(with_bases(["--config", str(file), *options]))
        found = measure(FitConfig(values), args.prompt, args.answer)
        print(f"{file.stem:<24}" + "".join(f"{size / 1e9:>12.2f}" for size in found), flush=True)


if __name__ == "__main__":
    main()
