"""What a carried message (`pooler: carry`) tells whoever holds it: the text, token by token, without any training.

    python benchmarks/leak_carry.py MODEL --texts 200

MODEL is a hub id, folder or .gguf file, on both sides. In a model's first layer a token's key and value depend on no
other token; so they are looked up among those of the whole vocabulary, and the nearest gives the token. That needs the
sharer's weights, which are public, and the message as it travels: no key, no adapter. Each text holds four digits that
nobody can guess. Prints how many whole texts are read back from each dtype on the wire.
"""

from __future__ import annotations

import argparse
from random import Random

import torch
from torch import Tensor

from lcf_lightning import AdapterSettings, Channel, LCFModule, Message, ModelSpec
from lcf_lightning.models.cache import prefill
from lcf_lightning.models.loading import FrozenModel

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")


def first_layer(model: FrozenModel) -> Tensor:
    """``[vocabulary, numbers]``: keys, un-rotated since each token is a text of its own, and values of all tokens."""
    size = model.model.config.get_text_config().vocab_size
    rows = []
    for ids in torch.arange(size)[:, None].split(4096):
        cache = prefill(model.model, ids, torch.ones_like(ids, dtype=torch.bool))
        rows.append(torch.cat([cache.keys[0].flatten(1), cache.values[0].flatten(1)], 1))
    return torch.cat(rows)


def read_back(message: Message, known: Tensor) -> list[int]:
    """The token whose key and value are nearest, for each that was sent."""
    sides = (side[0].transpose(-3, -2).reshape(message.spans, -1) for side in (message.keys, message.values))
    return torch.cdist(torch.cat(list(sides), 1).float(), known.float()).argmin(1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=200)
    args = parser.parse_args()
    spec = ModelSpec(args.model)
    module = LCFModule(spec, spec, AdapterSettings(d=8, pooler="carry"))
    module.configure_model()
    channel = Channel(module.link.sharer, module.link.receiver, module.adapter)
    known, tokenizer, random = first_layer(channel.link.sharer), channel.link.sharer.tokenizer, Random(42)
    texts = [
        f"The number of {random.choice(NAMES)}'s safe is {random.randrange(10_000):04}." for _ in range(args.texts)
    ]
    messages = [channel.send([text], "What is the number?") for text in texts]
    print(f"{args.texts} texts, {sum(message.spans for message in messages)} tokens, {len(known):,} in the vocabulary")
    for dtype in ("float32", "float16", "int8", "int4"):
        said = [tokenizer.decode(read_back(Message.from_bytes(each.to_bytes(dtype)), known)) for each in messages]
        whole = sum(text in read for text, read in zip(texts, said, strict=True))
        print(f"{dtype:8} {whole} whole texts read back, as in {said[0]!r}")


if __name__ == "__main__":
    main()
