"""Accuracy against the number of sharers that an example's facts are spread over, on the embedded world.

    python benchmarks/many_sharers.py runs/quickstart/adapter runs/quickstart_many/adapter

Each sharer reads its own facts and the question and sends a message; the receiver answers with all of them. Test
split, seed 42, exact match with its bootstrap interval: questions that need a sharer (the message of this example, the
messages of another), and questions that the receiver answers alone. *Knower*: the message of the one sharer that has
read the fact, the others silent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lcf_lightning import Channel
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.evaluation.statistics import estimate, format_estimate

BATCH = 128


def parts(example: Example, sharers: int) -> list[list[str]]:
    """What each sharer reads, in order."""
    facts = [fact for (fact,) in example.sharer]
    return [facts[at * len(facts) // sharers : (at + 1) * len(facts) // sharers] for at in range(sharers)]


def right(
    channel: Channel, asked: Sequence[Example], sent: Sequence[Example], sharers: int, knower: bool = False
) -> list[bool]:
    """Whether the receiver answers each of ``asked`` right, given the messages of ``sent``."""
    found = []
    for start in range(0, len(asked), BATCH):
        questions, senders = asked[start : start + BATCH], sent[start : start + BATCH]
        texts = [
            [part for part in parts(row, sharers) if not knower or any(row.question in fact for fact in part)]
            for row in senders
        ]
        flat = [(part, row.question) for row, group in zip(senders, texts, strict=True) for part in group]
        messages = iter(channel.send_batch([part for part, _ in flat], [question for _, question in flat]))
        answers = channel.receive_batch(
            [[next(messages) for _ in group] for group in texts],
            [row.question for row in questions],
            [[fact for (fact,) in row.receiver] for row in questions],
            max_new_tokens=4,
        )
        found += [answer.text == row.answers[0] for answer, row in zip(answers, questions, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--sharers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--limit", type=int, help="Only the first so many questions of either kind.")
    args = parser.parse_args()
    examples = list(World().examples("test", 42))
    need, own = ([row for row in examples if row.needs_sharer is kind][: args.limit] for kind in (True, False))
    others = [*need[1:], need[0]]
    print(f"n = {len(need)} and {len(own)}\n")
    print("| adapter | sharers | message | mismatched | knower | own questions |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for adapter in args.adapters:
        channel = Channel.from_pretrained(adapter)
        for sharers in args.sharers:
            arms = (
                right(channel, need, need, sharers),
                right(channel, need, others, sharers),
                right(channel, need, need, sharers, knower=True),
                right(channel, own, own, sharers),
            )
            print(
                f"| {adapter} | {sharers} | {' | '.join(format_estimate(estimate(arm)) for arm in arms)} |", flush=True
            )


if __name__ == "__main__":
    main()
