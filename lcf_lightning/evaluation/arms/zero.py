"""An all-zero message."""

from __future__ import annotations

import torch

from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.models.geometry import KV


class Zero(Arm):
    """A message of zeros: what the adapter does of itself."""

    name = "zero"
    family = "control"
    place = 70
    comparisons = (("gain_over_zero", "message", "zero"),)
    note = "*Zero* is an all-zero message."

    def read(self, caches: ArmCaches) -> Reading:
        nothing = KV(*(torch.zeros_like(tensor) for tensor in caches.summaries.kv))
        return caches.receives(caches.summaries._replace(kv=nothing))
