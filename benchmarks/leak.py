"""What a message made for one question tells about the rest of what the sharer has read, on the embedded world.

    python benchmarks/leak.py runs/quickstart/adapter

The sharer reads four facts and is shown a question about one of them. Who holds the message wants the value of another:
*receiver*, who just asks for it; *probe*, a linear classifier of 67 values that was trained on 4,000 other messages,
from the fact's own summary or, pooled, from the one vector there is (the first fact's value). Test split, seed 42;
accuracy with its bootstrap interval.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from lcf_lightning import Channel, Message
from lcf_lightning.data.example import Example
from lcf_lightning.data.sources import World
from lcf_lightning.data.sources.world import VALUES
from lcf_lightning.evaluation.statistics import estimate, format_estimate


def facts(rows: list[Example]) -> list[list[str]]:
    return [["".join(passage) for passage in row.sharer] for row in rows]


def features(messages: list[Message], span: int) -> Tensor:
    """``[messages, numbers of one span]``."""
    sides = ([getattr(message, side)[..., span, :].flatten() for message in messages] for side in ("keys", "values"))
    return torch.cat([torch.stack(side) for side in sides], 1)


def unasked(rows: list[Example], messages: list[Message], spans: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features and value of every fact in ``spans`` that a message was not made for."""
    found, labels = [], []
    for span in spans:
        kept = [at for at, row in enumerate(rows) if row.question not in row.sharer[span][0]]
        found.append(features([messages[at] for at in kept], min(span, messages[0].spans - 1)))
        labels += [VALUES.index(rows[at].sharer[span][0].split()[2]) for at in kept]
    return torch.cat(found), torch.tensor(labels)


def probed(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Whether a linear classifier names each value of ``test``."""
    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
    probe = torch.nn.Linear(train[0].shape[1], len(VALUES))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1_500):
        batch = torch.randint(len(train[0]), (256,), generator=generator)
        logits = probe((train[0][batch] - mean) / deviation)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
        optimizer.step()
    return probe((test[0] - mean) / deviation).argmax(-1) == test[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--train", type=int, default=4_000, help="Messages that the probe learns from.")
    parser.add_argument("--limit", type=int, help="Only the first so many messages of the test.")
    args = parser.parse_args()
    torch.manual_seed(0)
    channel = Channel.from_pretrained(args.adapter)
    test = [row for row in World().examples("test", 42) if row.needs_sharer][: args.limit]
    world = World(train_size=2 * args.train).examples("train", 42)
    train = [row for row in world if row.needs_sharer][: args.train]
    own = [["".join(passage) for passage in row.receiver] for row in test]
    other = [next(fact for (fact,) in row.sharer if row.question not in fact) for row in test]
    print(f"n = {len(test)}\n\n| message | receiver, as meant | receiver, another | probe, another |")
    print("| --- | ---: | ---: | ---: |")
    for pooled in (False, True) if channel.adapter.poolable else (False,):
        learned_from, messages = (
            channel.send_batch(facts(rows), [row.question for row in rows], pooled) for rows in (train, test)
        )
        meant = channel.receive_batch(messages, [row.question for row in test], own, max_new_tokens=4)
        asked = channel.receive_batch(messages, [" ".join(fact.split()[:2]) for fact in other], own, max_new_tokens=4)
        spans = (0,) if pooled else (0, 1, 2, 3)
        cells = (
            [answer.text == row.answers[0] for answer, row in zip(meant, test, strict=True)],
            [answer.text == fact.split()[2] for answer, fact in zip(asked, other, strict=True)],
            probed(unasked(train, learned_from, spans), unasked(test, messages, spans)).tolist(),
        )
        form = "pooled" if pooled else "a summary a span"
        print(f"| {form} | {' | '.join(format_estimate(estimate(cell)) for cell in cells)} |")


if __name__ == "__main__":
    main()
