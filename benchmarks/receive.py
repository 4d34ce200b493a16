"""What `Channel.receive` costs against transformers' plain `generate` of the same prompt, and the fuse step alone.

    python benchmarks/receive.py SHARER RECEIVER --tokens 150 --new_tokens 16

SHARER and RECEIVER are hub ids, folders or .gguf files. Both sides read so many tokens; every answer has exactly
``--new_tokens``. The adapter is not trained, with open gates: every layer is pooled and fused. Batch 1, one process,
the two in turn, warmed up; medians (least–greatest) of the repeats, in milliseconds, and the ratio, paired by repeat.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median

import torch
from latency import examples

from lcf_lightning import AdapterSettings, Channel, LCFModule, Message, ModelSpec
from lcf_lightning.data.example import Example
from lcf_lightning.models.options import Decoding


def plain(channel: Channel, row: Example, new_tokens: int) -> float:
    """Milliseconds of `generate` on the receiver's own prompt, its text written and read as `receive` does."""
    started = time.perf_counter()
    receiver = channel.link.receiver
    prompt = channel.writer.encoder(channel.prompts, "receiver").prompt(row.receiver, row.question)
    config = Decoding.of(receiver, new_tokens, {"min_new_tokens": new_tokens}).config
    ids = torch.tensor([prompt.ids])
    said = receiver.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    receiver.tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
    return (time.perf_counter() - started) * 1e3


def received(channel: Channel, message: Message, row: Example, new_tokens: int) -> tuple[float, float]:
    """Milliseconds of `receive`, and of its fuse step."""
    started = time.perf_counter()
    answer = channel.receive(message, row.question, row.receiver[0], new_tokens, min_new_tokens=new_tokens)
    return (time.perf_counter() - started) * 1e3, answer.milliseconds["fuse"]


def spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        module = LCFModule(ModelSpec(args.sharer), ModelSpec(args.receiver), AdapterSettings(d=args.d))
        module.adapter.save_pretrained(folder)
        channel = Channel.from_pretrained(folder)
    rows = []
    inputs = islice(cycle(examples(channel.link, args.tokens)), args.repeats + 2)
    for repeat, row in enumerate(inputs, start=-2):  # two to warm up
        message = channel.send(row.sharer[0], row.question)
        own = plain(channel, row, args.new_tokens)
        whole, fuse = received(channel, message, row, args.new_tokens)
        if repeat >= 0:
            rows.append((own, fuse, whole, whole / (own + fuse)))
    own, fuse, whole, ratio = zip(*rows, strict=True)
    print(f"{args.tokens} tokens read, {args.new_tokens} written, {torch.get_num_threads()} threads")
    print(f"plain generate {spread(own)} ms · fuse {spread(fuse)} ms · receive {spread(whole)} ms")
    print(f"receive / (plain generate + fuse) = {spread(ratio, 3)}")


if __name__ == "__main__":
    main()
