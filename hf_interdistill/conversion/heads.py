"""Linear heads: how an original computes a reward from a hidden state, and the same as one row and a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.privacy import public_name
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class LinearHead:
    """`reward = (mix @ (weight @ hidden + bias) - mean) / std`.

    Args:
        weight: `(outputs, hidden_size)`, float32.
        bias: `(outputs,)`, float32.
        mix: what each output counts, `(outputs,)`.
        mean, std: with which the original normalizes.
    """

    weight: Tensor
    bias: Tensor
    mix: Tensor
    mean: float = 0.0
    std: float = 1.0

    def rewards(self, hidden: Tensor) -> Tensor:
        """Rewards of hidden states `(rows, hidden_size)`, step by step as the original computes them."""
        device = hidden.device
        outputs = torch.nn.functional.linear(hidden.float(), self.weight.to(device), self.bias.to(device))
        return ((outputs * self.mix.to(device)).sum(-1) - self.mean) / self.std

    def row(self) -> Tensor:
        """The head as one output `(1, hidden_size)`, without its constant."""
        return (self.mix.double() @ self.weight.double() / self.std).float()[None]

    def constant(self) -> float:
        """What the head adds to the reward of any text."""
        return float((self.mix.double() @ self.bias.double() - self.mean) / self.std)


def read_linear(
    checkpoint: Checkpoint, prefix: str, hidden_size: int, outputs: int | None = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias (zeros where there is none) of a linear layer, checked.

    Args:
        prefix: of the names of its weights. hidden_size: of the model. outputs: expected; `None` for any number.

    Raises:
        ValueError: it is missing, of another shape, or holds a number that is not finite.
    """
    name = public_name(checkpoint.name)
    if f"{prefix}.weight" not in checkpoint.names:
        raise ValueError(
            f"{name} has no `{prefix}.weight`, which this format reads the reward with. Set `format` to that of the "
            "trainer that saved it, or copy the file that holds the head."
        )
    weight = checkpoint.tensor(f"{prefix}.weight").float()
    if weight.dim() != 2 or weight.shape[1] != hidden_size or outputs not in (None, weight.shape[0]):
        raise ValueError(
            f"`{prefix}.weight` in {name} has the shape {tuple(weight.shape)}, but a head of {outputs or 'some'} "
            f"output(s) on hidden states of {hidden_size} has {(outputs or 'outputs', hidden_size)}. Use the head "
            "that was trained with this model."
        )
    bias = torch.zeros(weight.shape[0])
    if f"{prefix}.bias" in checkpoint.names:
        bias = checkpoint.tensor(f"{prefix}.bias").float()
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"`{prefix}.bias` in {name} has the shape {tuple(bias.shape)}, but must have "
                f"{tuple(weight.shape[:1])}, one number per output. Use the head that was trained with this model."
            )
    for part, tensor in (("weight", weight), ("bias", bias)):
        if not tensor.isfinite().all():
            raise ValueError(
                f"`{prefix}.{part}` in {name} holds {int((~tensor.isfinite()).sum())} numbers that are not finite, so "
                "every reward would be NaN. Take an earlier checkpoint, or copy the file again."
            )
    if not weight.any():
        raise ValueError(
            f"`{prefix}.weight` in {name} is zero, so every text would have the same reward: the head was not "
            "trained, or not gathered when it was saved. Save it again with all of its weights."
        )
    return weight, bias


def last_place(row: Sequence[int], pad_token_id: int | None) -> int:
    """The scored position of an original that uses the attention mask: the last token."""
    return len(row) - 1


def place_before_padding(row: Sequence[int], pad_token_id: int | None) -> int:
    """The scored position of an original that looks for padding: before the first padding token, or at the end."""
    return (row.index(pad_token_id) - 1) % len(row) if pad_token_id in row else len(row) - 1
