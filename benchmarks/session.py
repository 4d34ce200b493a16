"""What a session's second turn costs against transformers' plain `generate` of its new tokens on the same cache.

    python benchmarks/session.py SHARER RECEIVER --tokens 150 --new_tokens 16

SHARER and RECEIVER are hub ids, folders or .gguf files. In the first turn the receiver reads so many tokens and hears a
message. The second one's new tokens are some ``--tokens`` too, its answer has exactly ``--new_tokens``: asked in the
session, by `generate` on a copy of its cache (prompt written and answer read as the session does), and in the session
with a second message. The adapter is not trained, with open gates. One process, the three in turn, warmed up; medians
(least–greatest) of the repeats in milliseconds of this process's CPU, or of the clock on a GPU, and ratios, paired by
repeat.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from latency import text_of
from receive import spread

from lcf_lightning import AdapterSettings, Channel, LCFModule, ModelSpec
from lcf_lightning.conversation import State
from lcf_lightning.models.cache import cache_argument, to_transformers
from lcf_lightning.models.decoding import Answer, Decoding

QUESTION = "What did the keeper do?"


def plain(channel: Channel, state: State, passages: list[str], new_tokens: int) -> Callable[[], object]:
    """`generate` on a copy of a session's cache, which is made before."""
    reader, model = channel.link.receiver, channel.link.receiver.model
    assert state.cache is not None
    past, messages = to_transformers(model, state.cache), state.cache.mask.shape[1] - len(state.ids)
    config = Decoding.of(reader, new_tokens, {"min_new_tokens": new_tokens}).config

    def asked() -> object:
        ids = channel.writer.prompts(
            "receiver", channel.prompts, [((each,) for each in passages)], [(state.turns, QUESTION)]
        )[0].ids
        ids = torch.tensor([[ids[-1]] * messages + ids], device=reader.device)
        mask = torch.ones_like(ids)
        said = model.generate(
            ids, attention_mask=mask, generation_config=config, **{cache_argument(type(model)): past}
        )  # fmt: skip
        return reader.tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)

    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--pooler", default="span")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    module = LCFModule(ModelSpec(args.sharer), ModelSpec(args.receiver), AdapterSettings(d=args.d, pooler=args.pooler))
    module.configure_model()
    channel = Channel(module.link.sharer, module.link.receiver, module.adapter.eval())
    clock = time.perf_counter if channel.link.receiver.device.type == "cuda" else time.process_time
    session = channel.session()
    texts = [[text_of(channel.link, args.tokens, place)] for place in range(4)]
    exactly = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens}
    first, second = (channel.send(text, QUESTION) for text in texts[:2])
    session.ask(QUESTION, texts[2], first, **exactly)
    after = session.state

    def timed(ask: Callable[[], object]) -> tuple[float, object]:
        session.state, started = after, clock()
        said = ask()
        return (clock() - started) * 1e3, said

    rows = []
    for repeat in range(-2, args.repeats):  # two to warm up
        own, _ = timed(plain(channel, after, texts[3], args.new_tokens))
        asked, _ = timed(lambda: session.ask(QUESTION, texts[3], **exactly))
        read = session.tokens - after.cache.mask.shape[1] - args.new_tokens
        told, answer = timed(lambda: session.ask(QUESTION, texts[3], second, **exactly))
        assert isinstance(answer, Answer)
        if repeat >= 0:
            rows.append((own, asked, told, asked / own, told / own))
    own, asked, told, ratio, told_ratio = zip(*rows, strict=True)
    print(f"{read} new tokens read, {args.new_tokens} written, {torch.get_num_threads()} threads, pooler {args.pooler}")
    print(f"plain generate {spread(own)} ms · session {spread(asked)} ms · with a message {spread(told)} ms")
    print(f"session / plain generate = {spread(ratio, 3)}; with a message {spread(told_ratio, 3)}")


if __name__ == "__main__":
    main()
