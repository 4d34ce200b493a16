"""What is lost on the way: a message that goes back and forth between two models, beside a text that does.

    lcf-lightning fit --config configs/quickstart_blind.yaml
    lcf-lightning fit --config configs/quickstart_blind.yaml --model.sharer.path tiny-receiver \
        --model.receiver.path tiny-sharer --trainer.default_root_dir runs/quickstart_blind_back
    python benchmarks/relay.py runs/quickstart_blind/adapter runs/quickstart_blind_back/adapter

The first model has read four facts; those in between have read nothing and send on what they have heard (`relay`), or
write on what they have read; the last one has read facts of its own and answers. The question is shown to nobody but
the last. Embedded world, test split, seed 42, questions that need the first model, exact match with its bootstrap
interval: by the number of hops the message, that of the next example, and the text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from lcf_lightning import Channel, Message, relay
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.statistics import estimate, format_estimate
from lcf_lightning.evaluation.text_baseline import text_prompts, write_texts

BATCH, BUDGET = 128, 50


def messages(channels: Sequence[Channel], example: Example) -> list[Message]:
    """What arrives after the first hop, the second and so on."""
    told = [channels[0].send([fact for (fact,) in example.sharer])]
    for heard, onward in pairwise(channels):
        told.append(relay(told[-1], heard, onward))
    return told


@torch.no_grad()
def texts(channels: Sequence[Channel], examples: Sequence[Example]) -> list[list[str]]:
    """What each example's text says after the first hop, the second and so on."""
    by_hop: list[list[str]] = []
    for channel in channels:
        tokens, last = text_prompts(channel.link, channel.writer, channel.prompts, examples)
        written = write_texts(channel.link, channel.link.prefill_sharer(tokens), last, BUDGET)
        by_hop.append(channel.writer.texts(written, "sharer"))
        examples = [replace(row, sharer=((text,),)) for row, text in zip(examples, by_hop[-1], strict=True)]
    return [list(of_example) for of_example in zip(*by_hop, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs=2, help="There, and back.")
    parser.add_argument("--hops", type=int, default=4)
    parser.add_argument("--limit", type=int, help="Only the first so many questions.")
    args = parser.parse_args()
    there = Channel.from_pretrained(args.adapters[0])
    models = {"sharer": there.link.receiver, "receiver": there.link.sharer}
    back = Channel.from_pretrained(args.adapters[1], **models)
    channels = [(there, back)[hop % 2] for hop in range(args.hops)]
    asked = [row for row in World().examples("test", 42) if row.needs_sharer][: args.limit]
    told = [messages(channels, row) for row in asked]
    said = [of for start in range(0, len(asked), BATCH) for of in texts(channels, asked[start : start + BATCH])]
    print(
        f"n = {len(asked)}\n\n| hops | who answers | message | mismatched | text |\n| ---: | --- | ---: | ---: | ---: |"
    )
    for hop, channel in enumerate(channels):
        mine = [of[hop] for of in told]
        arms = [
            right(channel, asked, mine),
            right(channel, asked, [*mine[1:], mine[0]]),
            right(channel, asked, [None] * len(asked), [of[hop] for of in said]),
        ]
        scores = " | ".join(format_estimate(estimate(arm)) for arm in arms)
        print(f"| {hop + 1} | {channel.link.receiver.spec.path} | {scores} |", flush=True)


def right(
    channel: Channel, asked: Sequence[Example], told: Sequence[Message | None], said: Sequence[str] = ()
) -> list[bool]:
    """Whether the last model answers each question right, given a message, or a text behind what it has read."""
    found = []
    for start in range(0, len(asked), BATCH):
        rows, read = asked[start : start + BATCH], said[start : start + BATCH]
        own = [[fact for (fact,) in row.receiver] for row in rows]
        passages = [[*facts, text] for facts, text in zip(own, read, strict=True)] if read else own
        questions = [row.question for row in rows]
        answers = channel.receive_batch(told[start : start + BATCH], questions, passages, max_new_tokens=4)
        found += [answer.text == row.answers[0] for answer, row in zip(answers, rows, strict=True)]
    return found


if __name__ == "__main__":
    main()
