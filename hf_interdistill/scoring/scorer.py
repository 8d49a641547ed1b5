"""`RewardScorer`: rewards of completions from any trained reward model, formatted as in training."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..utils.context_length import check_row_length, context_length
from ..utils.dtypes import check_dtype
from ..utils.fields import require_positive
from ..utils.privacy import public_name
from ..utils.sources import loading
from ..utils.whole_models import model_options
from .aggregation import is_ensemble
from .batching import LengthScaling, choose_padding, padded
from .loading import load_reward_model
from .text_scorer import TextScorer

logger = logging.getLogger(__name__)


def loading_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained`, checked: float32 unless `dtype` is given."""
    options = {"dtype": torch.float32, **model_options("RewardScorer.from_pretrained", given)}
    check_dtype("dtype", options["dtype"])
    return options


class RewardScorer(TextScorer):
    """Scores `(prompt, completion)` pairs: `scorer(prompts, completions) -> list[float]`.

    The text is formatted as `InteractionDistillationTrainer` and TRL's `RewardTrainer` format it. A reward is the same
    alone and in any batch: before the first batch a few texts are read alone and together, which chooses the side to
    pad on. It is also a TRL reward function (`reward_funcs=[scorer]`).

    Args:
        model: a trained sequence classifier with one output (a plain model, or a PEFT model).
        tokenizer: its tokenizer, with the chat template it was trained with if prompts are messages.
        batch_size: completions per forward pass; they are sorted by length, which saves padding.
        max_length: completions whose text is longer are an error, since truncation would change the reward; `None` for
            no limit.

    Attributes:
        last_token_counts: tokens processed per completion in the last call.
        last_forward_passes: forward passes of the last call.

    Raises:
        ValueError: more than one output; no padding token; an over-long text; lists of different lengths; a model
            that gives a text different rewards in a batch and alone.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, *, batch_size: int = 16, max_length: int | None = None):
        if getattr(model.config, "num_labels", None) != 1:
            raise ValueError(
                f"The model has `num_labels={getattr(model.config, 'num_labels', None)}`, but a reward model has one "
                "output. Load one with `num_labels=1`."
            )
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "The tokenizer has no padding token, so the last token of a padded row cannot be found. Set "
                "`tokenizer.pad_token` to the one used in training."
            )
        super().__init__(tokenizer, batch_size, max_length)
        self.model = model.eval()
        # Encoders (as reward models: DeBERTa and others) count positions by themselves and keep no cache.
        self.is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
        self._has_warned_of_length = False
        self._padding_side: str | None = None  # measured when the first batch is read
        self._length_scaling = LengthScaling.of(model)
        text_config = model.config.get_text_config()
        if text_config.pad_token_id is None:
            text_config.pad_token_id = tokenizer.pad_token_id
        if text_config.pad_token_id != tokenizer.pad_token_id:
            raise ValueError(
                f"The model pads with token {text_config.pad_token_id}, the tokenizer with {tokenizer.pad_token_id} "
                f"({tokenizer.pad_token!r}): the model would read the reward at a padding token. Make them equal, as "
                "they were in training."
            )
        # TRL reads the name of a reward function to label its logs.
        self.__name__ = os.path.basename(str(model.config._name_or_path).rstrip("/")) or type(self).__name__

    @classmethod
    def from_pretrained(cls, name: str, tokenizer=None, *, batch_size: int = 16, max_length=None, **model_kwargs):
        """Load a reward model (full, or a PEFT adapter) and its tokenizer, in float32 unless `dtype` is given.

        Args:
            name: folder or Hub name.
            tokenizer: by default the one saved with the model, from the same `revision`, `subfolder`, `cache_dir`.
            batch_size, max_length: see the class.
            **model_kwargs: of `from_pretrained` (`dtype`, `revision`, `token`, `attn_implementation`, `device_map`,
                `quantization_config`, ...).

        Raises:
            ValueError: the checkpoint has no score head, so rewards would be random; an adapter of another task.
            FileNotFoundError: there is neither a folder nor a model on the Hub of that name.
            IncompleteModelError: weights that are missing, of another shape, or without a place in the model.
        """
        name = str(name)
        if is_ensemble(name):
            raise ValueError(
                f"{public_name(name)} holds an ensemble, which is not a single reward model. Load it with "
                "`RewardEnsemble.from_pretrained`, or give the folder of one of its members."
            )
        options = loading_options(model_kwargs)
        with loading(name, "reward model"):
            model, tokenizer = load_reward_model(name, tokenizer, **options)
        return cls(model, tokenizer, batch_size=batch_size, max_length=max_length)

    @property
    def context_length(self) -> int | None:
        """Tokens that the model can read at most; `None` if it has no limit."""
        return context_length(self.model, self.tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        return self.model.config.get_text_config().vocab_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device) -> RewardScorer:
        self.model.to(device)
        return self

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if `score_ids` would refuse a row of so many tokens, or `encode` its text."""
        self._refuse_over_long(length)
        self._check_positions(length)
        self.batches([length])

    def score_ids(
        self,
        rows: Sequence[Sequence[int]],
        *,
        is_progress_shown: bool = False,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> list[float]:
        """Rewards of token rows, as `RewardFormatter.encode` makes them.

        Args:
            rows: tokens of each text.
            positions: position ids for decoders, if not consecutive (for example where tokens were left out).
                Encoders compute their own.
        """
        require_positive("batch_size", self.batch_size)
        self._check_positions(max(map(len, rows), default=0))
        reach = [len(row) if positions is None else max(positions[i]) + 1 for i, row in enumerate(rows)]
        chunks = self.batches([len(row) for row in rows], reach)
        rewards = torch.zeros(len(rows))
        self.last_token_counts, self.last_forward_passes = [len(row) for row in rows], len(chunks)
        side = self.padding_side if any(len(chunk) > 1 for chunk in chunks) else "right"
        for chunk in tqdm(chunks, desc="Scoring", disable=not is_progress_shown):
            places = None if positions is None else [positions[i] for i in chunk]
            rewards[chunk] = self._read([rows[i] for i in chunk], side, places).cpu()
        return rewards.tolist()

    def _check_positions(self, length: int) -> None:
        warning = check_row_length(self.model, length, "A text")
        if warning is not None and not self._has_warned_of_length:
            self._has_warned_of_length = True
            logger.warning(f"{warning} (Warned once.)")

    @property
    def padding_side(self) -> str:
        """Where batches are padded, `right` or `left`, measured at first use (not with `batch_size=1`).

        Raises:
            ValueError: the model gives a text different rewards in a batch and alone.
        """
        if self._padding_side is None and self.batch_size > 1:
            self._padding_side = choose_padding(self.model, self.tokenizer, self._read)
        return self._padding_side or "right"

    def batches(self, lengths: Sequence[int], reach: Sequence[int] | None = None) -> list[list[int]]:
        """Numbers of the rows that are read together: of similar lengths, the longest first, and never some within and
        some beyond the length up to which LongRoPE has one set of frequencies.

        Args:
            lengths: tokens of each row.
            reach: the highest position of each row plus one, by default its length.
        """
        reach = lengths if reach is None else reach
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        scaling = self._length_scaling
        if scaling is None:
            groups = [order]
        else:
            if scaling.kind == "dynamic":
                scaling.refuse_longer(max(reach, default=0), "max_length")
            beyond = [i for i in order if reach[i] > scaling.original_length]
            groups = [beyond, [i for i in order if reach[i] <= scaling.original_length]]
        size = self.batch_size
        return [group[start : start + size] for group in groups for start in range(0, len(group), size)]

    def _read(
        self, rows: Sequence[Sequence[int]], side: str, positions: Sequence[Sequence[int]] | None = None
    ) -> torch.Tensor:
        """Rewards `(rows,)` of one batch, float32; a decoder's positions count from the first real token."""
        return self.read_outputs(rows, side, positions)[:, 0]

    def read_outputs(
        self, rows: Sequence[Sequence[int]], side: str, positions: Sequence[Sequence[int]] | None = None
    ) -> torch.Tensor:
        """What the head gives for each row of one batch, `(rows, outputs)` float32; arguments as in `score_ids`.

        Args:
            side: where to pad, see `padding_side`.
        """
        batch = padded(self.tokenizer, rows, side)
        inputs: dict[str, Any] = {name: values.to(self.device) for name, values in batch.items()}
        mask = inputs["attention_mask"]
        if self.is_causal:
            inputs["use_cache"] = False
            counted = (mask.cumsum(1) - 1).clamp(min=0)
            if positions is not None:  # read off in the order of the real tokens, on whichever side the padding is
                given = torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(row, device=self.device) for row in positions], batch_first=True
                )
                inputs["position_ids"] = given.gather(1, counted)
            else:
                inputs["position_ids"] = counted
        with torch.no_grad():
            return self.model(**inputs, **self.inputs_of(rows)).logits.float()

    def inputs_of(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """More inputs of the model for a batch of rows, beside their tokens."""
        return {}
