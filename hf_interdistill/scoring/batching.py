"""Whether a text has the same reward alone and in a padded batch: measured once, with the padding that a model
needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..utils.context_length import context_length
from ..utils.model_config import text_config

logger = logging.getLogger(__name__)

TEXTS = (
    "Yes.",
    "A question, and a short answer to it: it is so.",
    "A longer text with a few more words in it, so that the rows before it are padded to about three times their size "
    "when all of them are read together.",
)
# Largest difference that rounding explains, relative to the largest reward: other shapes sum in another order. GPUs
# may compute float32 as TF32.
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
_TOLERANCE_ON_DEVICES, _TOLERANCE_IN_HALF = 1e-2, 0.2
SIDES = ("right", "left")

Reader = Callable[[Sequence[Sequence[int]], str], torch.Tensor]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context without dropout.

    Linear layers have none and run in training mode: on CPUs with AVX512-BF16, bitsandbytes repacks its 4-bit layers
    when they run in evaluation mode, which permanently rounds their scales to bfloat16.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = isinstance(module, nn.Linear)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_rows(model: nn.Module, tokenizer) -> list[list[int]]:
    """Token rows of three lengths that the model can read, without padding tokens, and with EOS at their end."""
    scaling, limit = LengthScaling.of(model), context_length(model)
    limits = [each for each in (limit, scaling and scaling.original_length) if each]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    rows = [[token for token in row if token != tokenizer.pad_token_id] or [0] for row in rows]
    end = [] if tokenizer.eos_token_id in (None, tokenizer.pad_token_id) else [tokenizer.eos_token_id]
    lengths = [max(1, min(limits) // part - len(end)) if limits else None for part in (4, 2, 1)]
    return [row[:length] + end for row, length in zip(rows, lengths, strict=True)]


def padded(tokenizer, rows: Sequence[Sequence[int]], side: str) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, each `(rows, length)`, of token rows."""
    inputs = {"input_ids": [list(row) for row in rows]}
    batch = tokenizer.pad(inputs, padding_side=side, return_tensors="pt", return_attention_mask=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def tolerance(model: Any) -> float:
    """Largest difference of two rewards that rounding explains, relative to the largest reward."""
    device = getattr(getattr(model, "device", None), "type", "cpu")
    is_quantized = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    if is_quantized or torch.is_autocast_enabled(device):
        return _TOLERANCE_IN_HALF
    if device != "cpu" and model.dtype in _TOLERANCES:
        return _TOLERANCE_ON_DEVICES
    return _TOLERANCES.get(getattr(model, "dtype", torch.float32), _TOLERANCE_IN_HALF)


@dataclass(frozen=True)
class PaddingError:
    """Difference between rewards in a padded batch and those of the same texts alone.

    Args:
        side: `right` or `left`.
        alone, padded: rewards of the same texts.
    """

    side: str
    alone: torch.Tensor
    padded: torch.Tensor

    @property
    def relative(self) -> float:
        """Largest difference, divided by the largest reward; NaN in the batch counts as infinite."""
        error = (self.padded - self.alone).abs().max() / self.alone.abs().max().clamp(min=1e-8)
        return float(error.nan_to_num(nan=float("inf")))

    def __str__(self) -> str:
        alone, padded = ([round(value, 4) for value in values.tolist()] for values in (self.alone, self.padded))
        return f"padded on the {self.side}, {padded} instead of {alone}"


def padding_error(rows: Sequence[Sequence[int]], read: Reader, side: str) -> PaddingError:
    """Read rows of several lengths alone, and in one batch.

    Args:
        rows: token rows.
        read: from rows, and the side that they are padded on, to rewards `(rows,)`.
        side: where to pad.
    """
    alone = torch.cat([read([row], side).reshape(1) for row in rows]).float().cpu()
    return PaddingError(side, alone, read(rows, side).reshape(-1).float().cpu())


def choose_padding(model: nn.Module, tokenizer, read: Reader) -> str:
    """The side on which padding leaves the rewards of a model as they are: right, if that does, else left.

    Raises:
        ValueError: neither does.
    """
    rows = probe_rows(model, tokenizer)
    errors = []
    for side in SIDES:
        errors.append(padding_error(rows, read, side))
        if errors[-1].relative <= tolerance(model) or not errors[-1].alone.isfinite().all():
            return side
    raise ValueError(
        f"{type(model).__name__} gives a text different rewards in a batch and alone: {errors[0]}; {errors[1]} "
        "(more than rounding explains). Its reward depends on padding, or on the other texts of a batch. "
        "Score one text at a time (`batch_size=1`), or use a model that masks its padding."
    )


def require_padding_independence(model: Any, tokenizer) -> None:
    """Raise `ValueError` if right padding, with which `RewardTrainer` makes its batches, changes rewards."""

    def read(rows: Sequence[Sequence[int]], side: str) -> torch.Tensor:
        batch = padded(tokenizer, rows, side)
        return model(**{name: values.to(model.device) for name, values in batch.items()}).logits[:, 0]

    with evaluation_mode(model), torch.no_grad():
        error = padding_error(probe_rows(model, tokenizer), read, "right")
    if error.relative > tolerance(model) and error.alone.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} gives a text different rewards in a batch and alone: {error}. `RewardTrainer` "
            "pads "
            "its batches on the right, so the model would be trained on rewards that it never gives again. Train with "
            "`per_device_train_batch_size=1` on pairs of equal length, or use a model that masks its padding"
            f"{_REMEDY.get(_peft_type(model), '')}."
        )


_REMEDY = {
    "PROMPT_TUNING": "; prompt tuning hides the token ids from the pooling, so use LoRA",
    "P_TUNING": "; p-tuning hides the token ids from the pooling, so use LoRA",
}


def _peft_type(model: Any) -> str:
    config = getattr(model, "active_peft_config", None)
    return "" if config is None else str(getattr(config.peft_type, "value", config.peft_type))


@dataclass(frozen=True)
class LengthScaling:
    """Rotary positions whose frequencies depend on the longest row of a batch.

    Args:
        kind: `longrope` (two sets of frequencies) or `dynamic` (others for each length).
        original_length: tokens up to which there is one set of frequencies.
    """

    kind: str
    original_length: int

    @classmethod
    def of(cls, model: nn.Module) -> LengthScaling | None:
        """The scaling of a model; `None` if its positions do not depend on other rows."""
        config = text_config(model)
        rope = getattr(config, "rope_parameters", None) or {}
        each = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # one for each type of layer
        for parameters in each:
            kind = str(parameters.get("rope_type", ""))
            if kind == "longrope":
                return cls(kind, parameters["original_max_position_embeddings"])
            if "dynamic" in kind:
                return cls("dynamic", config.max_position_embeddings)
        return None

    def refuse_longer(self, length: int | None, option: str) -> None:
        """Raise `ValueError` where a text may be longer, so that its reward depends on others read with or before it.

        Args:
            length: tokens of the longest text, `None` if nothing limits them.
            option: what sets the limit, for the message.
        """
        if length is None or length > self.original_length:
            raise ValueError(
                f"Texts may have {'any number of' if length is None else length} tokens, but this model's rotary "
                f"positions (`rope_type={self.kind!r}`) are the same for all texts only up to {self.original_length}. "
                "Beyond, a reward depends on the longest text that is read with it or before it. Set "
                f"`{option}={self.original_length}` and leave longer texts out."
            )
