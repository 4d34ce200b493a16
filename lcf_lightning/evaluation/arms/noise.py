"""Random numbers that look like a message."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lcf_lightning.evaluation.arms.arm import Arm
from lcf_lightning.evaluation.caches import ArmCaches, Reading
from lcf_lightning.models.geometry import KV


class Noise(Arm):
    """Normal noise with the mean and standard deviation of this example's message."""

    name = "noise"
    family = "control"
    place = 90
    comparisons = (("gain_over_noise", "message", "noise"),)
    note = "*Noise* is a random message with this one's mean and standard deviation per layer and head."

    def read(self, caches: ArmCaches) -> Reading:
        present = caches.batch.receiver.mask if caches.link.shared else caches.summaries.present
        noise = moment_matched_noise(caches.summaries.kv, caches.batch.ids, present)
        return caches.receives(caches.summaries._replace(kv=noise))


def moment_matched_noise(message: KV, ids: Sequence[str], present: Tensor) -> KV:
    """Normal noise with the mean and standard deviation of each layer and head of each example's message.

    Args:
        message: ``[layers, batch, heads, tokens, head size]``.
        ids: The examples' ids; noise is a function of them, whatever the batch.
        present: ``[batch, tokens]``, bool, False on padding, which stays zero.
    """

    def matched(tensor: Tensor, name: str) -> Tensor:
        filled = torch.zeros_like(tensor)
        for row, id in enumerate(ids):
            real = present[row]
            example = tensor[:, row][:, :, real]
            generator = torch.Generator().manual_seed(zlib.crc32(f"noise/{name}/{id}".encode()))
            noise = torch.randn(example.shape, generator=generator).to(example)
            noise = (noise - noise.mean((-2, -1), keepdim=True)) / noise.std((-2, -1), keepdim=True)
            mean, deviation = (moment(example, (-2, -1), keepdim=True) for moment in (torch.mean, torch.std))
            filled[:, row][:, :, real] = noise * deviation + mean
        return filled

    return KV(matched(message.keys, "keys"), matched(message.values, "values"))
