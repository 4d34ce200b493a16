"""Bytes of a message on the wire, and what is answered with it: each dtype, with a summary a span or pooled over all.

    python benchmarks/message.py --config configs/quickstart.yaml
    python benchmarks/message.py --config configs/smollm2_babi_cpu.yaml --adapter DIR --limit 256

The config's test split, with the run's own adapter where none is named. Exact match, with Wilson's interval, on
questions that need the sharer; *other answers*: how many differ from those of the float32 message; median bytes, header
included. Every message goes through `to_bytes` and `from_bytes`.
"""

from __future__ import annotations

import sys
from statistics import median

from lcf_lightning import Channel, Message
from lcf_lightning.cli import evaluate
from lcf_lightning.cli.config import parse
from lcf_lightning.data.example import Example, Passage
from lcf_lightning.evaluation.scoring import score
from lcf_lightning.evaluation.statistics import format_estimate, rate

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")


def texts(passages: tuple[Passage, ...]) -> list[str]:
    return ["".join(passage) for passage in passages]


def answers(channel: Channel, messages: list[Message], rows: list[Example], max_new_tokens: int) -> list[str]:
    own = [texts(row.receiver) for row in rows]
    found = channel.receive_batch(messages, [row.question for row in rows], own, max_new_tokens)
    return [answer.text.split("\n")[0].strip() for answer in found]


def main() -> None:
    options, config = parse(evaluate.COMMAND, evaluate.EvaluateOptions, sys.argv[1:])
    data = config.data()
    adapter = config.read_adapter(config.adapter_folder(options.adapter), data)
    data.setup("test")
    link = config.link(adapter, data, config.device)
    channel = Channel(link.sharer, link.receiver, link.adapter)
    ways = (False, True) if channel.adapter.poolable else (False,)
    forms = [(dtype, pooled) for pooled in ways for dtype in DTYPES]
    said: dict[tuple[str, bool], list[str]] = {form: [] for form in forms}
    sizes: dict[tuple[str, bool], list[int]] = {form: [] for form in forms}
    examples: list[Example] = []
    for batch in data.evaluation_loader("test", options.limit, by_length=True):
        rows = [row for row in batch.examples if row.needs_sharer]
        examples += rows
        contexts = [texts(row.sharer) for row in rows]
        asked = [row.question if channel.takes_question else None for row in rows]
        for pooled in ways if rows else ():
            messages = channel.send_batch(contexts, asked, pooled)
            for form in [(dtype, pooled) for dtype in DTYPES]:
                wire = [message.to_bytes(form[0]) for message in messages]
                arrived = [Message.from_bytes(each, origin=channel.origin) for each in wire]
                sizes[form] += map(len, wire)
                said[form] += answers(channel, arrived, rows, config.max_new_tokens)
    print(f"n = {len(examples)}\n\n| message | dtype | bytes | exact match | other answers |")
    print("| --- | --- | ---: | ---: | ---: |")
    for dtype, pooled in forms:
        right = [score(text, row.answers).exact_match for text, row in zip(said[dtype, pooled], examples, strict=True)]
        other = sum(one != two for one, two in zip(said[dtype, pooled], said["float32", False], strict=True))
        form = "pooled" if pooled else "a summary a span"
        size = f"{median(sizes[dtype, pooled]):,.0f}"
        print(f"| {form} | {dtype} | {size} | {format_estimate(rate(right))} | {other} |")


if __name__ == "__main__":
    main()
