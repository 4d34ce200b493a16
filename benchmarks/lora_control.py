"""A control for `configs/qwen_coder_hotpotqa.yaml`: its parameters and steps spent on the receiver, and no message.

    pip install peft
    python benchmarks/lora_control.py --output runs/lora.jsonl --config configs/qwen_coder_hotpotqa.yaml

LoRA on every linear map of the receiver, of the rank whose parameters are nearest to the adapter's. It acts where the
message acts: with a shared context (``pooler: null``) on all that the receiver reads; else on what it reads after its
prefill, which is that of the frozen model. Data, batches, optimizer and schedule are the fit's; the loss is that of the
answer under own context. Then a split is answered with it, own context and, where contexts differ, full context; what
adapters and texts say without it stands in their own evaluations. Any option of ``fit`` follows ``--output``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.evaluate import COMMAND
from lcf_lightning.data.batch import Batch
from lcf_lightning.data.tokens import Tokens
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.prediction import answer_losses, columns, run_arms
from lcf_lightning.files import write_text
from lcf_lightning.models.cache import KVCache, prefill
from lcf_lightning.module import LCFModule

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TunedReceiver(pl.LightningModule):
    """A fit's receiver with LoRA, trained without a message.

    Args:
        module: The fit's module: its models, optimizer and schedule.
    """

    def __init__(self, module: LCFModule) -> None:
        super().__init__()
        self.module = module

    def configure_model(self) -> None:
        if hasattr(self, "lora"):
            return
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.module.configure_model()
        link = self.module.link
        budget, model = self.module.adapter.parameter_counts()["total"], link.receiver.model
        named = [part for name, part in model.named_modules() if name.rpartition(".")[2] in _MAPS]
        maps = [part for part in named if isinstance(part, nn.Linear)]
        rank = round(budget / sum(part.in_features + part.out_features for part in maps))
        torch.manual_seed(self.module.seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_MAPS), model)
        layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
        self.lora = nn.ParameterList(p for name, p in model.named_parameters() if "lora_" in name)
        for part in self.lora:
            part.data = part.data.float()  # of a bfloat16 receiver: small steps would be lost
        print(f"rank {rank}, {sum(p.numel() for p in self.lora):,} parameters; the adapter has {budget:,}")
        if self.shared_context:
            link.sides["receiver"] = link.side("receiver")._replace(prefill=_read_by(model))
            return
        for role, side in link.sides.items():  # the prefill is the frozen model's
            link.sides[role] = side._replace(prefill=_frozen(side.prefill, layers))

    @property
    def shared_context(self) -> bool:
        """Whether the message would edit all that the receiver has read."""
        return self.module.adapter.config.settings.pooler is None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        own = self.module.link.read_receiver(batch.receiver)
        loss = answer_losses(self.module.link, Reading(own, batch.last, batch.question), batch).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        self.module.trainer = self.trainer
        self.module.adapter.requires_grad_(False)
        optimizer = self.module.optimizer
        self.module.optimizer = lambda _: optimizer(self.lora)
        return self.module.configure_optimizers()


def _read_by(model: PreTrainedModel) -> Callable[[Tokens], KVCache]:
    """A prefill with the model as it is now, computed each time; gradients flow."""
    return lambda row: unwrap(prefill)(model, row.ids, row.mask, largest=row.largest)


def _frozen(reader: Callable[..., Any], layers: Sequence[BaseTunerLayer]) -> Callable[..., Any]:
    @contextmanager
    def off() -> Iterator[None]:
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def read(*args: Any) -> Any:
        with off(), torch.no_grad():
            return reader(*args)

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="predictions, one JSON object a line")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="what is answered")
    parser.add_argument("--limit", type=int, help="a seeded sample of so many rows, as evaluate takes it")
    args, options = parser.parse_known_args()
    if find_spec("peft") is None:
        parser.exit(2, "error: peft is not installed; pip install peft.\n")
    if args.output.is_file():
        print(f"{args.output} is there already.")
        return
    config = FitConfig(config_parser(COMMAND).parse_args(with_bases(options)))
    pl.seed_everything(config.values["seed_everything"])
    tuned, data = TunedReceiver(config.module()), config.data()
    steps, clip = config.values["trainer"]["max_steps"], config.values["trainer"]["gradient_clip_val"]
    trainer = pl.Trainer(
        max_steps=steps, gradient_clip_val=clip, accelerator="auto", devices=1, logger=False,
        enable_checkpointing=False, limit_val_batches=0, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(tuned, data)
    data.setup("test" if args.split == "test" else "validate")
    link, writer = tuned.module.link, tuned.module.writer
    arms = ["own_context"] if tuned.shared_context else ["own_context", "full_context"]
    answers = []
    for batch in data.evaluation_loader(args.split, args.limit, by_length=True):
        caches = ArmCaches(link, writer, batch.to(link.receiver.device))
        answers += run_arms(caches, arms, tuned.module.max_new_tokens)
    lines = "".join(f"{json.dumps(asdict(row), ensure_ascii=False)}\n" for row in answers)
    write_text(args.output, lines)
    for arm in arms:
        exact, f1, losses = (
            sum(part) / len(part) for part in columns(answer for answer in answers if answer.arm == arm)
        )
        print(f"LoRA, {arm}: exact match {exact:.3f}, F1 {f1:.3f}, loss {losses:.3f}, n = {len(answers) // len(arms)}")


if __name__ == "__main__":
    main()
