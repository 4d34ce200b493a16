"""Sharers of different models to one receiver, each through its own adapter, on the embedded world.

    lcf-lightning fit --config configs/quickstart_blind.yaml
    lcf-lightning fit --config configs/quickstart_blind.yaml --model.sharer.path tiny-receiver \
        --trainer.default_root_dir runs/quickstart_blind_twin
    python benchmarks/mixed_sharers.py runs/quickstart_blind/adapter runs/quickstart_blind_twin/adapter

An example's facts are dealt to the sharers in order; the receiver hears all of them together (`Channel.beside`). Beside
it each sharer as the only one, with all facts. Test split, seed 42, questions that need a sharer, exact match with its
bootstrap interval: the messages of this example, and those of the next one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lcf_lightning import Channel, Message
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.statistics import estimate, format_estimate

BATCH = 128


def sent(channels: Sequence[Channel], examples: Sequence[Example]) -> list[list[Message]]:
    """Of each example the messages of all sharers, each of which has read its part of the facts."""
    facts = [[fact for (fact,) in example.sharer] for example in examples]
    by_sharer = []
    for place, channel in enumerate(channels):
        parts = [all_of[place * len(all_of) // len(channels) : (place + 1) * len(all_of) // len(channels)]
                 for all_of in facts]  # fmt: skip
        asked = [example.question for example in examples] if channel.takes_question else None
        by_sharer.append(channel.send_batch(parts, asked))
    return [list(messages) for messages in zip(*by_sharer, strict=True)]


def right(
    receiver: Channel, channels: Sequence[Channel], asked: Sequence[Example], told: Sequence[Example]
) -> list[bool]:
    """Whether the receiver answers each of ``asked`` right, given the messages of ``told``."""
    found = []
    for start in range(0, len(asked), BATCH):
        rows = asked[start : start + BATCH]
        answers = receiver.receive_batch(
            sent(channels, told[start : start + BATCH]),
            [row.question for row in rows],
            [[fact for (fact,) in row.receiver] for row in rows],
            max_new_tokens=4,
        )
        found += [answer.text == row.answers[0] for answer, row in zip(answers, rows, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--limit", type=int, help="Only the first so many questions.")
    args = parser.parse_args()
    asked = [row for row in World().examples("test", 42) if row.needs_sharer][: args.limit]
    others = [*asked[1:], asked[0]]
    first = Channel.from_pretrained(args.adapters[0])
    model = first.link.receiver
    channels = [first, *(Channel.from_pretrained(folder, receiver=model) for folder in args.adapters[1:])]
    print(f"n = {len(asked)}\n\n| sharers | message | mismatched |\n| --- | ---: | ---: |")
    for speaking in ([channel] for channel in channels):
        report(speaking[0], speaking, asked, others)
    report(first.beside(*channels[1:]), channels, asked, others)


def report(receiver: Channel, channels: Sequence[Channel], asked: Sequence[Example], others: Sequence[Example]) -> None:
    """A row of the table."""
    arms = [format_estimate(estimate(right(receiver, channels, asked, told))) for told in (asked, others)]
    models = " and ".join(channel.link.sharer.spec.path for channel in channels)
    print(f"| {models} | {' | '.join(arms)} |", flush=True)


if __name__ == "__main__":
    main()
