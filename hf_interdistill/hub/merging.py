"""Merges a LoRA reward model into its base model, so that it loads without PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..scoring.attributes import ATTRIBUTES_FILE
from ..scoring.raw_reward import answer_with_raw_reward
from ..scoring.reloading import require_same_when_reloaded
from ..scoring.scorer import RewardScorer
from ..utils.privacy import public_name
from .files import CARD, MAPS


@contextmanager
def merged_model(folder: str | Path, dtype: str = "float32") -> Iterator[Path]:
    """A folder with the full model made of an adapter and its base model; it is removed when the context ends.

    Args:
        folder: where the adapter was saved.
        dtype: data type of the merged weights. Merging is done in float32; a narrower type rounds the rewards.

    Raises:
        ValueError: no adapter; an adapter without a trained score head, or of which a part is missing.
        ReloadError: what was saved gives different tokens or rewards than the merged model.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{public_name(str(folder))} holds no adapter, so there is nothing to merge. Push it without `--merge`."
        )
    scorer = RewardScorer.from_pretrained(str(folder))
    model = scorer.model.merge_and_unload().to(getattr(torch, dtype))
    answer_with_raw_reward(model.config)
    with TemporaryDirectory(prefix="merged-") as scratch:
        model.save_pretrained(scratch)
        scorer.tokenizer.save_pretrained(scratch)
        require_same_when_reloaded(model, scorer.tokenizer, scratch)
        for name in (CARD, MAPS, ATTRIBUTES_FILE):
            if (folder / name).is_file():
                shutil.copy2(folder / name, scratch)
        yield Path(scratch)
