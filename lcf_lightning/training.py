"""What training asks of a Trainer, how answers weigh in its gradients, and where its random numbers come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.ddp import DDPStrategy
from lightning.pytorch.strategies.deepspeed import DeepSpeedStrategy
from lightning.pytorch.strategies.single_device import SingleDeviceStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import Tensor

from lcf_lightning.data.sources.source import RowSource, Source
from lcf_lightning.errors import SettingError

WEIGHTINGS = ("example", "token")
_PRECISIONS = ("32-true", "bf16-mixed")
_OTHERS = (DeepSpeedStrategy, SingleDeviceXLAStrategy, XLAStrategy)  # though subclasses of those that are allowed


def require_trainer(trainer: Trainer, stage: str) -> None:
    """Raise a SettingError if a Trainer's precision, strategy or length cannot work."""
    if str(trainer.precision) not in _PRECISIONS:
        raise SettingError(
            f"precision={trainer.precision!r} must be one of {', '.join(_PRECISIONS)}: the adapter is trained "
            "in float32, the frozen models have their own dtype."
        )
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy) or isinstance(strategy, _OTHERS):
        raise SettingError(
            f"strategy={type(strategy).__name__} must be ddp, or auto: every process holds the whole adapter, and both "
            "frozen models, which no strategy divides."
        )
    if stage == "fit" and trainer.max_epochs == -1 and trainer.max_steps == -1:
        total_steps(trainer)


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of a fit, by which learning rate and gate temperature are scheduled.

    Raises:
        SettingError: If nothing bounds them.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 <= steps < math.inf:
        raise SettingError(
            f"max_steps={trainer.max_steps} must be above 0 where max_epochs={trainer.max_epochs} bounds no steps: "
            "the schedules of learning rate and gate temperature need the fit's length."
        )
    return int(steps)


class TokenMean:
    """Makes gradients of summed token losses those of their mean over all answer tokens of an optimizer step.

    Their number, on every rank and in every accumulated batch, is known only when the step is due.
    """

    def __init__(self) -> None:
        self._tokens: Tensor | int = 0  # of this rank, since the last step

    @classmethod
    def of(cls, loss_weighting: str) -> TokenMean | None:
        """What the setting asks for; None where each example weighs as much as any other."""
        if loss_weighting not in WEIGHTINGS:
            raise SettingError(f"loss_weighting={loss_weighting!r} must be one of {', '.join(WEIGHTINGS)}.")
        return cls() if loss_weighting == "token" else None

    def sum(self, losses: Tensor, tokens: Tensor) -> Tensor:
        """What to go back from: from each answer's mean loss and its tokens, ``[batch]``, the sum over tokens."""
        self._tokens = self._tokens + tokens.sum()
        return (losses * tokens).sum()

    def rescale(self, parameters: Iterable[torch.nn.Parameter], trainer: Trainer) -> None:
        """Divide by the number of tokens what Lightning and DDP have divided by accumulated batches and ranks."""
        tokens = trainer.strategy.reduce(self._tokens, reduce_op="sum")
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(trainer.accumulate_grad_batches * trainer.world_size / tokens)
        self._tokens = 0


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's random numbers from ``seed`` inside, and undisturbed outside (on the CPU and on ``device``)."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def hub_ids(source: Source) -> list[str]:
    """The data sets of the hub that a source, or those that it is made of, take training examples from."""
    values = [each for value in vars(source).values() for each in (value if isinstance(value, list) else [value])]
    found = [name for inner in values if isinstance(inner, Source) for name in hub_ids(inner)]
    if isinstance(source, RowSource) and source.train is not None:
        local = source.train.endswith(tuple(source.loaders)) or Path(source.train).exists()
        found += [] if local else [source.train]
    return list(dict.fromkeys(found))
