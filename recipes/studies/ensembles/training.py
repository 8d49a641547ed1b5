"""What the study trains: the gold reward on sentiment, and members on pairs that gold has labeled, some wrongly."""

from __future__ import annotations

import json
import random
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer


def gold_pairs(path: Path, count: int | None, seed: int) -> list[dict]:
    """Pairs of a positive (chosen) and a negative phrase, each phrase once.

    Args:
        path: JSONL of `text` and `label`. count: phrases to use at most, all if `None`. seed: of the choice.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(rows)
    liked, disliked = ([row["text"] for row in rows[:count] if row["label"] == label] for label in (1, 0))
    return [{"chosen": a, "rejected": b} for a, b in zip(liked, disliked, strict=False)]


def noisy_pairs(texts: list[dict], gold: list[list[float]], per_prompt: int, flipped: float, seed: int) -> list[dict]:
    """Pairs of two samples of a prompt, the one that gold prefers chosen, and exactly a share of them turned round.

    Args:
        texts: rows of `prompt` and `completions`. gold: scores of these.
        per_prompt: pairs of a prompt, of different samples. flipped: share with the labels changed. seed: of both.
    """
    rng = random.Random(seed)
    pairs = []
    for row, scores in zip(texts, gold, strict=True):
        order = rng.sample(range(len(scores)), 2 * per_prompt)
        for a, b in zip(order[::2], order[1::2], strict=True):
            better, worse = (a, b) if scores[a] > scores[b] else (b, a)
            sides = {"chosen": row["completions"][better], "rejected": row["completions"][worse]}
            pairs.append({"prompt": row["prompt"], **sides})
    for number in rng.sample(range(len(pairs)), round(flipped * len(pairs))):
        pair = pairs[number]
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return pairs


def train_gold(folder: Path, encoder: str, pairs: list[dict], arguments: dict) -> dict:
    """The gold reward, from a pretrained encoder."""
    set_seed(arguments["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token  # which closes plain texts
    return _train(folder, model, tokenizer, pairs, arguments)


def train_member(folder: Path, base: str, pairs: list[dict], arguments: dict) -> dict:
    """A member, from the language model; the seed draws its score head and the order of its pairs."""
    set_seed(arguments["seed"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    return _train(folder, model, tokenizer, pairs, arguments)


def _train(folder: Path, model, tokenizer, pairs: list[dict], arguments: dict) -> dict:
    args = RewardConfig(output_dir=str(folder), **arguments)
    trainer = RewardTrainer(model, args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    loss = trainer.train().training_loss
    trainer.save_model(str(folder))
    return {"pairs": len(pairs), "training_loss": loss}
