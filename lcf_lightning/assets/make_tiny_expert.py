"""Make the embedded expert: a tiny causal LM that knows the facts of `Knowledge` by heart.

    python -m lcf_lightning.assets.make_tiny_expert

An adapter can only carry what stands in the sharer's cache before the last prompt token. So the expert recalls a value
as soon as it has read the name: in half of its questions the question mark is left out, and the layers below the
last are supervised too (deep supervision).
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lcf_lightning.assets.make_tiny_models import BATCH, TOKEN, WARMUP_STEPS, descend, tiny_sharer, word_tokenizer
from lcf_lightning.data.sources.knowledge import FACTS

log = logging.getLogger(__name__)
NAME, STEPS, SUPERVISED_FROM = "tiny-expert", 1500, 2  # layers below the second cannot have joined relation and name


def questions() -> Tensor:
    """Every fact as ``<bos> question relation name ? value <eos>``: ``[facts, 7]``, int64."""
    rows = [["<bos>", "question", relation, name, "?", value, "<eos>"] for relation, name, value in FACTS]
    return torch.tensor([[TOKEN[word] for word in row] for row in rows])


def train(model: PreTrainedModel, facts: Tensor, seed: int) -> None:
    """Train ``model`` in place: the value must follow the name and the question mark, in the upper layers too."""
    unmarked = facts[:, [0, 1, 2, 3, 5, 6]]
    rng = random.Random(seed)
    decoder, head = model.get_decoder(), model.get_output_embeddings()

    def loss_at(step: int) -> Tensor:
        ids = (facts if rng.random() < 0.5 else unmarked)[rng.sample(range(len(facts)), BATCH)]
        output = model(input_ids=ids[:, :-1], output_hidden_states=True)
        # The value from each supervised layer (the last state has passed the final norm), the end from the last only.
        early = [head(decoder.norm(state[:, -2])) for state in output.hidden_states[SUPERVISED_FROM:-1]]
        losses = [F.cross_entropy(logits, ids[:, -2]) for logits in [*early, output.logits[:, -2]]]
        return torch.stack([*losses, F.cross_entropy(output.logits[:, -1], ids[:, -1])]).mean()

    descend(model, STEPS, loss_at, lambda step: min((step + 1) / WARMUP_STEPS, 1 - step / STEPS))


@torch.no_grad()
def recall(model: PreTrainedModel, facts: Tensor) -> float:
    """Fraction of all facts whose last two tokens, value and end, follow the others."""
    predicted = model(input_ids=facts[:, :-1]).logits[:, -2:].argmax(-1)
    return float((predicted == facts[:, -2:]).all(-1).float().mean())


def main() -> None:
    """Make the expert and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where the folder is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sums, and so the weights, depend on the number of threads
    torch.manual_seed(args.seed)
    model, facts = tiny_sharer(), questions()
    train(model, facts, args.seed)
    model.eval()
    log.info("%s: recalls %.4f of %d facts", NAME, recall(model, facts), len(facts))
    model.save_pretrained(args.output / NAME)
    word_tokenizer().save_pretrained(args.output / NAME)


if __name__ == "__main__":
    main()
