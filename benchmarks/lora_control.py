"""A control for `configs/qwen_coder_hotpotqa.yaml`: its parameters and steps spent on the receiver, and no message.

    pip install peft
    python benchmarks/lora_control.py --output runs/lora.jsonl --config configs/qwen_coder_hotpotqa.yaml

LoRA on every linear map of the receiver, of the rank whose parameters are nearest to the adapter's. It acts where the
message acts: on what the receiver reads after its prefill, which is that of the frozen model. Data, batches, optimizer
and schedule are the fit's; the loss is that of the answer under own context. Then the test split is answered with it,
own context and full context; what adapters and texts say without it stands in their own evaluations. Any option of
``fit`` follows ``--output``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lcf_lightning.cli.config import FitConfig, config_parser
from lcf_lightning.cli.config_files import with_bases
from lcf_lightning.cli.evaluate import COMMAND
from lcf_lightning.data.batch import Batch
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.evaluation.prediction import answer_losses, columns, run_arms
from lcf_lightning.files import write_text
from lcf_lightning.module import LCFModule

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

ARMS = ["own_context", "full_context"]
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
        maps = [part for name, part in model.named_modules() if name.rpartition(".")[2] in _MAPS]
        rank = round(budget / sum(part.in_features + part.out_features for part in maps))  # type: ignore[operator]
        torch.manual_seed(self.module.seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_MAPS), model)
        layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
        self.lora = nn.ParameterList(p for name, p in model.named_parameters() if "lora_" in name)
        print(f"rank {rank}, {sum(p.numel() for p in self.lora):,} parameters; the adapter has {budget:,}")
        for role, side in link.sides.items():  # the prefill is the frozen model's
            link.sides[role] = side._replace(prefill=_frozen(side.prefill, layers))

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


def _frozen(prefill: Callable[..., Any], layers: list[BaseTunerLayer]) -> Callable[..., Any]:
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
            return prefill(*args)

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="predictions, one JSON object a line")
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
    data.setup("test")
    link, writer = tuned.module.link, tuned.module.writer
    answers = []
    for batch in data.evaluation_loader("test", by_length=True):
        caches = ArmCaches(link, writer, batch.to(link.receiver.device))
        answers += run_arms(caches, ARMS, tuned.module.max_new_tokens)
    lines = "".join(f"{json.dumps(asdict(row), ensure_ascii=False)}\n" for row in answers)
    write_text(args.output, lines)
    for arm in ARMS:
        exact, f1, losses = (
            sum(part) / len(part) for part in columns(answer for answer in answers if answer.arm == arm)
        )
        print(f"LoRA, {arm}: exact match {exact:.3f}, F1 {f1:.3f}, loss {losses:.3f}, n = {len(answers) // len(ARMS)}")


if __name__ == "__main__":
    main()
