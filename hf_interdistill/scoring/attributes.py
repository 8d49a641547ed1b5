"""Attribute scores of a reward model: what the reward of a text is made of.

A model that was trained with `attribute_weights` has a linear head for each attribute, read at the token of the
reward. The reward is the weighted sum of their scores, so the model itself is saved with one output and is read by
anything. The heads are in a file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils.atomic_io import write_atomically
from ..utils.privacy import public_name
from .scorer import RewardScorer

ATTRIBUTES_FILE = "reward_attributes.json"  # not safetensors, which servers would take for weights of the model


@dataclass(frozen=True)
class RewardAttributes:
    """The attribute heads of a reward model.

    Args:
        weights: what each attribute counts in the reward, by name.
        weight: heads `(attributes, hidden_size)`, float32, in the order of `weights`.
        bias: `(attributes,)`, float32.

    The reward is `sum(weights[name] * (score[name] - bias))`. The biases would shift all rewards alike.
    """

    weights: dict[str, float]
    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RewardAttributes:
        """Read the heads that lie beside a reward model.

        Raises:
            FileNotFoundError: there are none. ValueError: a file that is damaged or of another kind.
        """
        path = Path(folder) / ATTRIBUTES_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{public_name(folder)} has no {ATTRIBUTES_FILE}: the model was trained without `attribute_weights`."
            )
        try:
            heads = json.loads(path.read_text(encoding="utf-8"))
            weights = {name: float(own["weight"]) for name, own in heads.items()}
            rows = torch.tensor([own["head"] for own in heads.values()], dtype=torch.float32)
            bias = torch.tensor([own["bias"] for own in heads.values()], dtype=torch.float32)
            if rows.dim() != 2 or bias.dim() != 1 or not rows.isfinite().all():
                raise ValueError("heads of different lengths, or numbers that are not finite")
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # of JSON, too
            raise ValueError(
                f"{public_name(folder)}/{ATTRIBUTES_FILE} is damaged, or holds no attribute heads ({error}). Copy it "
                "again from where the model was saved."
            ) from None
        return cls(weights, rows, bias)

    def save(self, folder: str | Path) -> Path:
        """Write the heads beside a reward model; returns the path."""
        path = Path(folder) / ATTRIBUTES_FILE
        parts = zip(self.weights.items(), self.weight.tolist(), self.bias.tolist(), strict=True)
        heads = {name: {"weight": weight, "bias": bias, "head": head} for (name, weight), head, bias in parts}
        write_atomically(path, json.dumps(heads, ensure_ascii=False) + "\n")
        return path

    def scores(
        self, scorer: RewardScorer, prompts: Iterable[Any], completions: Iterable[Any], **kwargs
    ) -> list[dict[str, float]]:
        """Scores of completions by attribute, in the unit of the training data.

        Args:
            scorer: the reward model that the heads lie beside.
            prompts, completions, **kwargs: as in a call of the scorer.

        Raises:
            ValueError: the heads are of another model; texts that the scorer refuses.
        """
        head = getattr(scorer.model, "score", None)
        size = scorer.model.config.get_text_config().hidden_size
        if not isinstance(head, torch.nn.Module) or size != self.weight.shape[1]:
            raise ValueError(
                f"The heads read states of {self.weight.shape[1]} numbers, but {type(scorer.model).__name__} has "
                f"states of {size}. Give the reward model that they were saved with."
            )
        weight, bias = self.weight.to(scorer.device), self.bias.to(scorer.device)

        def give_attributes(module, inputs, output):
            return torch.nn.functional.linear(inputs[0].float(), weight, bias)

        rows = scorer.encode_rows(prompts, completions, **kwargs)
        found: list[dict[str, float]] = [{} for _ in rows]
        side = scorer.padding_side  # measured with the model's own head
        hook = head.register_forward_hook(give_attributes)
        try:
            for chunk in scorer.batches([len(row) for row in rows]):
                values = scorer.read_outputs([rows[i] for i in chunk], side).cpu().tolist()
                for i, own in zip(chunk, values, strict=True):
                    found[i] = dict(zip(self.weights, own, strict=True))
        finally:
            hook.remove()
        return found
