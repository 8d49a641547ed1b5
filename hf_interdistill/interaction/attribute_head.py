"""Heads for attribute scores whose weighted sum is the reward of the model's own head.

The head of the attribute with the largest weight is not free: it is what is left of the reward head when the others
are taken off. So the model has one output in training, as it has when it is saved, and the sum is exact at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import nn

from ..scoring.attributes import RewardAttributes
from ..training.checkpoints import output_folder
from ..utils.model_config import text_config
from .responses import ResponseRows

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:  # a mixin: the trainer that it is mixed into brings `Trainer`
    _Trainer = object

_NAME = "attribute_head"  # in the model, so that optimizer, clipping and DDP see it
_FIX = "Train without `attribute_weights`."


class AttributeHead(nn.Module):
    """Attribute scores from the states that the reward is read from.

    Source: ours; several outputs with given weights as in ArmoRM (arXiv 2406.12845).

    Args:
        weights: what each attribute counts in the reward, by name; not all 0.
        means: the score that each head starts from, in the order of `weights`.
        hidden_size: of the states.
    """

    def __init__(self, weights: Mapping[str, float], means: Sequence[float], hidden_size: int):
        super().__init__()
        self.names = list(weights)
        self.weights = [float(weight) for weight in weights.values()]
        self.pivot = max(range(len(self.weights)), key=lambda i: abs(self.weights[i]))
        self.others = [i for i in range(len(self.weights)) if i != self.pivot]
        self.rows = nn.Parameter(torch.zeros(len(self.others), hidden_size))
        self.bias = nn.Parameter(torch.tensor(list(means), dtype=torch.float32))

    def forward(self, states: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Attribute scores `(texts, attributes)`.

        Args:
            states: `(texts, hidden_size)`. rewards: `(texts,)` of the model's own head on these states.
        """
        others = states.float() @ self.rows.T
        mix = others.new_tensor([self.weights[i] for i in self.others])
        pivot = (rewards.float() - others @ mix) / self.weights[self.pivot]
        columns = dict(zip(self.others, others.unbind(1), strict=True)) | {self.pivot: pivot}
        return torch.stack([columns[i] for i in range(len(self.weights))], 1) + self.bias

    @torch.no_grad()
    def heads(self, reward: torch.Tensor) -> torch.Tensor:
        """All heads `(attributes, hidden_size)`, given the reward head `(hidden_size,)`."""
        size = self.rows.shape[1]
        unit = torch.eye(size, device=self.rows.device)
        return (self(unit, reward.to(self.rows.device)) - self.bias).T

    @torch.no_grad()
    def restore(self, heads: torch.Tensor, bias: torch.Tensor) -> None:
        """Take over what `heads` gave."""
        self.rows.copy_(heads[self.others])
        self.bias.copy_(bias)


class _Depends(torch.autograd.Function):
    """Its first argument, unchanged in value and gradient, whose graph reaches the second one, too."""

    @staticmethod
    def forward(ctx, value, other):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class AttributeSaving(_Trainer):
    """Trainer mixin: models are saved and loaded with one output, and the heads of attributes beside them.

    Overrides transformers' `_save`, `_load_from_checkpoint` and `_load_best_model`.
    """

    _attributes: AttributeStates | None = None

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if self._attributes is None:
            return super()._save(output_dir, state_dict)
        with self._attributes.taken_out():
            super()._save(output_dir, state_dict)
        self._attributes.save(output_dir or output_folder(self.args))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self._attributes is None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._attributes.taken_out():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._attributes.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._attributes is None:
            return super()._load_best_model()
        with self._attributes.taken_out():
            super()._load_best_model()
        self._attributes.load(str(self.state.best_model_checkpoint))


class AttributeStates:
    """The head in a reward model: it runs where the reward head runs, and is saved beside the model.

    With `find_unused_parameters`, DDP walks the graph of what the model returns, and takes every parameter that it
    does not meet for unused. So the rewards depend on the attribute scores there, by a gradient that is not defined.

    Args:
        model: the reward model, with or without PEFT, not wrapped for several processes.
        weights, means: see `AttributeHead`.
        is_sharded: whether FSDP or DeepSpeed holds the weights.

    Raises:
        ValueError: sharded weights; no head named `score`.
    """

    def __init__(self, model: Any, weights: Mapping[str, float], means: Sequence[float], is_sharded: bool = False):
        base = model.get_base_model() if is_peft_model(model) else model
        if is_sharded:
            raise ValueError(
                "`attribute_weights` needs the whole reward head, but FSDP or DeepSpeed shards the weights. Use DDP "
                f"or one process. {_FIX}"
            )
        score = getattr(base, "score", None)
        if not isinstance(score, nn.Module):
            raise ValueError(
                f"`attribute_weights` reads the states before the module `score`, but {type(base).__name__} has none. "
                f"Use a decoder's `*ForSequenceClassification`. {_FIX}"
            )
        config = text_config(base)
        self._model, self._score, self._pad = model, score, config.pad_token_id
        self.head = AttributeHead(weights, means, config.hidden_size).to(model.device)
        self._predictions: torch.Tensor | None = None
        setattr(model, _NAME, self.head)

    @contextmanager
    def recording(self, rows: ResponseRows) -> Iterator[None]:
        """Predict the attribute scores of each pass over `rows`."""
        hook = self._score.register_forward_hook(partial(self._predict, rows))
        try:
            yield
        finally:
            hook.remove()

    def _predict(self, rows: ResponseRows, module: nn.Module, inputs: tuple[torch.Tensor], rewards: torch.Tensor):
        index = self._last_tokens(rows)[:, None] if rows.last_token_index is None else rows.last_token_index
        states = inputs[0].gather(1, index[..., None].expand(*index.shape, inputs[0].shape[-1]))
        picked = rewards[..., 0].gather(1, index)
        self._predictions = self.head(states.transpose(0, 1).flatten(0, 1), picked.T.flatten())
        return _Depends.apply(rewards, self._predictions)

    def take(self) -> torch.Tensor:
        """Attribute scores `(2 * pairs, attributes)` of the last pass, chosen rows first; they are then released."""
        predictions, self._predictions = self._predictions, None
        assert predictions is not None, "the model ran outside of the context"
        return predictions

    def _last_tokens(self, rows: ResponseRows) -> torch.Tensor:
        """Where transformers reads the reward: at the last token that is no padding token."""
        ids = rows.input_ids
        places = torch.arange(ids.shape[1], device=ids.device)
        return ((ids != self._pad).int() * places).argmax(1)

    @contextmanager
    def taken_out(self) -> Iterator[None]:
        """The model without the head: as it is saved and loaded."""
        delattr(self._model, _NAME)
        try:
            yield
        finally:
            setattr(self._model, _NAME, self.head)

    @torch.no_grad()
    def _reward_head(self) -> torch.Tensor:
        """The reward head `(hidden_size,)`, whatever module (plain, or PEFT's) it is."""
        parameter = next(self._score.parameters())
        unit = torch.eye(self.head.rows.shape[1], device=parameter.device, dtype=parameter.dtype)
        return self._score(unit)[:, 0].float()

    def save(self, folder: str | Path) -> None:
        """Write the heads beside a saved model."""
        weights = dict(zip(self.head.names, self.head.weights, strict=True))
        heads = self.head.heads(self._reward_head())
        RewardAttributes(weights, heads.cpu(), self.head.bias.detach().cpu()).save(folder)

    def load(self, folder: str | Path) -> None:
        """Take over the heads of a checkpoint.

        Raises:
            ValueError: they are of other attributes or weights. FileNotFoundError: there are none.
        """
        found = RewardAttributes.from_pretrained(folder)
        own = dict(zip(self.head.names, self.head.weights, strict=True))
        if list(found.weights.items()) != list(own.items()):
            raise ValueError(
                f"The checkpoint {folder} has the attributes {found.weights}, but `attribute_weights` is {own}. "
                "Resume with those of the checkpoint."
            )
        self.head.restore(found.weight.to(self.head.rows.device), found.bias.to(self.head.rows.device))
