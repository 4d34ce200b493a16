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

from lcf_lightning.assets.make_tiny_models import BATCH, TOKEN, tiny_sharer, word_tokenizer
from lcf_lightning.data.sources.knowledge import FACTS

log = logging.getLogger(__name__)
NAME, STEPS, SUPERVISED_FROM = "tiny-expert", 1500, 2  # layers below the second cannot have joined relation and name


def questions() -> Tensor:
    """Every fact as ``<bos> question relation name ? value``: ``[facts, 6]``, int64."""
    rows = [["<bos>", "question", relation, name, "?", value] for relation, name, value in FACTS]
    return torch.tensor([[TOKEN[word] for word in row] for row in rows])


def train(model: PreTrainedModel, facts: Tensor, seed: int) -> None:
    """Train ``model`` in place: the value must follow the name and the question mark, in the upper layers too."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 60, 1 - step / STEPS))
    for step in range(STEPS):
        rows = facts[rng.sample(range(len(facts)), BATCH)]
        ids, values = rows[:, :-1] if rng.random() < 0.5 else rows[:, :-2], rows[:, -1]
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        # The last state has passed the final norm already.
        logits = [head(decoder.norm(state[:, -1])) for state in states[SUPERVISED_FROM:-1]] + [head(states[-1][:, -1])]
        loss = torch.stack([F.cross_entropy(each, values) for each in logits]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log.info("step %d  loss %.3f", step + 1, loss.item())


@torch.no_grad()
def recall(model: PreTrainedModel, facts: Tensor) -> float:
    """Fraction of all facts that are answered after the question mark."""
    predicted = model(input_ids=facts[:, :-1]).logits[:, -1].argmax(-1)
    return float((predicted == facts[:, -1]).float().mean())


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
