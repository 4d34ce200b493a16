"""Receivers that are served by somebody else's engine: what a `Channel` has read and heard, handed over."""

from lcf_lightning.serving.prefilled import Prefilled as Prefilled
from lcf_lightning.serving.prefilled import prefill as prefill
