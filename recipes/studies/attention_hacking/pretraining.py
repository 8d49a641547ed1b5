"""Teaches a decoder from scratch to write before it becomes a reward model, on the texts that it is trained on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from preferences import Row
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from hf_interdistill.scoring.formatting import RewardFormatter

MARK = "pretraining.json"  # written last: a folder without it was not finished


def pretrain(
    config: LlamaConfig,
    training: Sequence[Row],
    held_out: Sequence[Row],
    formatter: RewardFormatter,
    folder: Path,
    **settings,
) -> dict[str, Any]:
    """Train a language model on the texts of preferences, and keep the weights of the epoch that does best.

    Args:
        config: shape of the decoder. training, held_out: rows; both texts of each are read as the reward model will.
        formatter: of the reward model. folder: for the weights. settings: of TRL's `SFTConfig`, with `seed`.

    Returns:
        `loss`, nats a token on the held-out texts (the untrained model's is `loss_before`), `epoch` of the weights
        kept, and `checksum` of the last of them.

    Raises:
        ValueError: the loss is not a number.
    """
    set_seed(settings["seed"])
    model = LlamaForCausalLM(config)
    args = SFTConfig(
        output_dir=str(folder / "scratch"),
        packing=True,
        packing_strategy="wrapped",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        **settings,
    )
    trainer = SFTTrainer(
        model,
        args=args,
        train_dataset=_texts(training, formatter),
        eval_dataset=_texts(held_out, formatter),
        processing_class=formatter.tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = {log["epoch"]: log["eval_loss"] for log in trainer.state.log_history[1:] if "eval_loss" in log}
    epoch = min(losses, key=losses.get)
    if not math.isfinite(losses[epoch]):
        raise ValueError(f"Pretraining ended with a loss of {losses[epoch]}; lower `learning_rate` of `pretraining`.")
    trainer.model.save_pretrained(folder)
    shutil.rmtree(args.output_dir)
    last = trainer.model.model.norm.weight.detach().float().cpu()
    mark = {
        "loss": losses[epoch],
        "loss_before": before,
        "epoch": epoch,
        "checksum": float(last.sum(dtype=torch.float64)),
    }
    (folder / MARK).write_text(json.dumps(mark), encoding="utf-8")
    return mark


def _texts(rows: Sequence[Row], formatter: RewardFormatter) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [formatter.encode(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]}
    )
