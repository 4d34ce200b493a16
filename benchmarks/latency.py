"""What a message costs against a text, on a real pair: time to first token, stage by stage.

    python benchmarks/latency.py SHARER RECEIVER --tokens 150 --d 64 --output latency.json

SHARER and RECEIVER are hub ids, folders or .gguf files. Both sides read contexts of so many tokens, cut from the same
English paragraphs. The adapter is not trained: with open gates every layer is pooled and fused, as in a trained one.
One process, the arms in turn; the page that ``evaluate`` writes of its latencies, and its figures as JSON.
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle, islice
from pathlib import Path

import torch

from lcf_lightning import AdapterSettings, LCFModule, ModelSpec
from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.evaluation.latency import batches_of_one, measure
from lcf_lightning.evaluation.markdown import latency_page
from lcf_lightning.files import write_text
from lcf_lightning.link import Link

SENTENCES = (
    " The lighthouse on the northern cape was built in 1871 by an engineer from the capital.",
    " Its keeper wrote down the weather every morning and sent the pages to the harbour office.",
    " Ships that came from the east had to wait for the tide before they could pass the bar.",
    " In the winter of 1902 a storm took the roof of the boat house and two of the three boats.",
    " The new roof was made of copper, which the town paid for by selling the old market hall.",
    " A painter who spent his summers there left forty small pictures to the school.",
    " When the lamp became electric in 1934 the last keeper moved to the village and opened a shop.",
)
PROMPTS = PromptSettings(
    text_request="Tell somebody who has not read the text above everything that it says, in full sentences.",
    text_chat=True,
)
ARMS = ("own_context", "full_context", "t2t_50", "t2t_100", "t2t_150", "t2t_200")


def text_of(link: Link, tokens: int, start: int) -> str:
    """So many tokens of English, from one of the sentences on."""
    tokenizer = link.sharer.tokenizer
    text = "".join(islice(cycle(SENTENCES), start, start + tokens))
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def examples(link: Link, tokens: int) -> list[Example]:
    sides = [(text_of(link, tokens, i), text_of(link, tokens, i + 3)) for i in range(len(SENTENCES))]
    return [
        Example(str(i), "What did the keeper do?", ("wrote",), ((sharer,),), ((receiver,),))
        for i, (sharer, receiver) in enumerate(sides)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharer")
    parser.add_argument("receiver")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    module = LCFModule(ModelSpec(args.sharer), ModelSpec(args.receiver), AdapterSettings(d=args.d))
    module.to(args.device).configure_model()
    module.adapter.eval()
    inputs = batches_of_one(module.link, module.writer, PROMPTS, examples(module.link, args.tokens))
    latency = measure(module.link, module.writer, inputs, ARMS, args.max_new_tokens, args.repeats)
    print(latency_page(latency))
    if args.output is not None:
        write_text(args.output, json.dumps(latency, indent=2) + "\n")


if __name__ == "__main__":
    main()
