"""Make the embedded default: two tiny causal LMs of different classes that can read the embedded world.

    python -m lcf_lightning.assets.make_tiny_models

Recipe (measured to work): train first on repeated random sequences, which grows the induction heads that
look things up, then mix in question answering with questions drawn *with replacement* (a permutation would let the
model answer by elimination and it would never learn to read) and copying the facts out when asked for a message.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lcf_lightning.data.sources.world import NAMES, RELATIONS, VALUES, VOCABULARY, World, draw_facts

log = logging.getLogger(__name__)
TOKEN = {word: index for index, word in enumerate(VOCABULARY)}
BATCH, MAX_FACTS, WARMUP_STEPS = 64, 12, 60
SHARED: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 256,
    "pad_token_id": TOKEN["<pad>"],
    "bos_token_id": TOKEN["<bos>"],
    "eos_token_id": TOKEN["<eos>"],
    "tie_word_embeddings": True,
}


def tiny_sharer() -> PreTrainedModel:
    """A Llama of 3 layers with 2 KV heads of size 32."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, **SHARED,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_receiver() -> PreTrainedModel:
    """A Qwen3 of 4 layers with 4 KV heads of size 16."""
    config = Qwen3Config(
        hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        head_dim=16, **SHARED,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


class Recipe(NamedTuple):
    """How one of the two is made; without QK norm it takes longer until induction heads form."""

    build: Callable[[], PreTrainedModel]
    repeat_steps: int
    steps: int


RECIPES = {
    "tiny-sharer": Recipe(tiny_sharer, repeat_steps=1200, steps=4500),
    "tiny-receiver": Recipe(tiny_receiver, repeat_steps=600, steps=2400),
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the embedded world's vocabulary that puts ``<bos>`` first."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", TOKEN["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def repeated_sequences(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Random words, a random prefix, then the words again; the loss counts on the second copy only."""
    length, prefix = rng.randint(4, 32), rng.randint(0, 16)
    first = torch.randint(len(VOCABULARY) - len(NAMES + RELATIONS + VALUES), len(VOCABULARY), (BATCH, prefix + length))
    bos = torch.full((BATCH, 1), TOKEN["<bos>"])
    ids = torch.cat([bos, first, first[:, prefix:]], dim=1)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    scored[:, -length + 1 :] = True
    return ids, scored


def questions_and_answers(rng: random.Random, questions: int = 4) -> tuple[Tensor, Tensor]:
    """Facts and several questions about them, drawn with replacement; the loss counts on the answers only."""
    count = rng.randint(1, MAX_FACTS)
    rows, scores = [], []
    for _ in range(BATCH):
        facts = draw_facts(rng, count)
        words = ["<bos>"] + [word for fact in facts for word in (*fact, ".")]
        score = [False] * len(words)
        for relation, name, value in rng.choices(facts, k=questions):
            words += ["question", relation, name, "?", value, "<eos>"]
            score += [False] * 4 + [True] * 2
        rows.append([TOKEN[word] for word in words])
        scores.append(score)
    return torch.tensor(rows), torch.tensor(scores)


def messages(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Facts, the word ``message``, the facts again: what the text baseline asks of the sharer."""
    count = rng.randint(1, MAX_FACTS // 2)
    rows = []
    for _ in range(BATCH):
        words = [word for fact in draw_facts(rng, count) for word in (*fact, ".")]
        rows.append([TOKEN[word] for word in ["<bos>", *words, "message", *words, "<eos>"]])
    ids = torch.tensor(rows)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    scored[:, -(4 * count + 1) :] = True
    return ids, scored


def train(model: PreTrainedModel, steps: int, repeat_steps: int, seed: int, learning_rate: float = 2e-3) -> None:
    """Train ``model`` in place: ``repeat_steps`` of repeated sequences, then the mixture."""
    rng = random.Random(seed)

    def loss_at(step: int) -> Tensor:
        makers = [repeated_sequences] if step < repeat_steps else [questions_and_answers, messages]
        ids, scored = rng.choice(makers)(rng)
        logits = model(input_ids=ids).logits
        return F.cross_entropy(logits[:, :-1][scored[:, 1:]], ids[:, 1:][scored[:, 1:]])

    def factor(step: int) -> float:
        return min((step + 1) / WARMUP_STEPS, 1.0) * max(0.02, 1 - step / steps)

    descend(model, steps, loss_at, factor, learning_rate)


def descend(
    model: PreTrainedModel,
    steps: int,
    loss_at: Callable[[int], Tensor],
    factor: Callable[[int], float],
    learning_rate: float = 2e-3,
) -> None:
    """So many AdamW steps on ``loss_at(step)``, at ``factor(step)`` of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    started = time.monotonic()
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log.info("step %d  loss %.3f  %.0f s", step + 1, loss.item(), time.monotonic() - started)


@torch.no_grad()
def reading_accuracy(model: PreTrainedModel, facts: int = 8, size: int = 1024) -> float:
    """Fraction of unseen questions answered with all ``facts`` in context."""
    world = World(facts, receiver_facts=0, own_questions=0.0, validation_size=size).examples("validation", seed=1)
    rows, answers = [], []
    for index in range(size):
        example = world[index]
        words = ["<bos>", *"".join(f"{p[0]} " for p in example.sharer).split(), "question", *example.question.split()]
        rows.append([TOKEN[word] for word in [*words, "?"]])
        answers.append(TOKEN[example.answers[0]])
    predicted = model(input_ids=torch.tensor(rows)).logits[:, -1].argmax(-1)
    return float((predicted == torch.tensor(answers)).float().mean())


@torch.no_grad()
def copying_accuracy(model: PreTrainedModel, facts: int = 4, size: int = 256) -> float:
    """Fraction of unseen contexts of ``facts`` facts that are copied out whole when asked for a message."""
    world = World(facts, receiver_facts=0, own_questions=0.0, validation_size=size).examples("validation", seed=2)
    copies = [" ".join(sentence for passage in example.sharer for sentence in passage) for example in world]
    rows = [[TOKEN[word] for word in ("<bos>", *copy.split(), "message", *copy.split(), "<eos>")] for copy in copies]
    ids = torch.tensor(rows)
    length = 4 * facts + 1
    predicted = model(input_ids=ids).logits[:, -length - 1 : -1].argmax(-1)
    return float((predicted == ids[:, -length:]).all(-1).float().mean())


def main() -> None:
    """Make the models and write their folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="where the model folders are written"
    )
    parser.add_argument("--only", choices=RECIPES, help="make one of the two")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sums, and so the weights, depend on the number of threads
    for name, recipe in RECIPES.items():
        if args.only in (None, name):
            torch.manual_seed(args.seed)
            model = recipe.build()
            log.info("%s: %d parameters", name, model.num_parameters())
            train(model, recipe.steps, recipe.repeat_steps, args.seed)
            model.eval()
            log.info("%s: reads 8 facts %.4f, copies 4 %.4f", name, reading_accuracy(model), copying_accuracy(model))
            model.save_pretrained(args.output / name)
            word_tokenizer().save_pretrained(args.output / name)


if __name__ == "__main__":
    main()
