"""`RewardScorer`: rewards of completions from any trained reward model, formatted as in training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..utils.context_length import check_row_length
from ..utils.dtypes import check_dtype
from ..utils.fields import require_positive
from ..utils.sources import loading
from ..utils.whole_models import model_options
from .batching import LengthScaling, choose_padding, padded
from .checks import as_list, check_response, check_same_length
from .control_tokens import SANITIZE
from .formatting import RewardFormatter, Text, is_messages, normal_text, template_kwargs
from .loading import load_reward_model
from .normal_form import is_missing

logger = logging.getLogger(__name__)

_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


class RewardScorer:
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
            that gives a text another reward in a batch than alone.
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
        self.model, self.tokenizer = model.eval(), tokenizer
        # Encoders (as reward models: DeBERTa and others) count positions by themselves and keep no cache.
        self.is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
        require_positive("batch_size", batch_size)
        require_positive("max_length", max_length, is_optional=True)
        self.batch_size, self.max_length = batch_size, max_length
        self.last_token_counts: list[int] = []
        self.last_forward_passes = 0
        self.formatter = RewardFormatter(tokenizer, is_date_warned=True)
        self._has_warned_of_control_tokens = self._has_warned_of_length = False
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
        options = {"dtype": torch.float32, **model_options("RewardScorer.from_pretrained", model_kwargs)}
        check_dtype("dtype", options["dtype"])
        with loading(name, "reward model"):
            model, tokenizer = load_reward_model(name, tokenizer, **options)
        return cls(model, tokenizer, batch_size=batch_size, max_length=max_length)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device) -> RewardScorer:
        self.model.to(device)
        return self

    def __call__(
        self,
        prompts: Iterable[Text | None],
        completions: Iterable[Text],
        *,
        is_progress_shown: bool = False,
        **kwargs,
    ) -> list[float]:
        """Rewards of completions.

        Args:
            prompts: text or messages for each completion; `None` where the completion contains the whole
                conversation.
            completions: text or messages, of the same kind as the prompts. A plain text after a prompt of messages is
                taken as the assistant's message. Both may be any iterable with one entry per row.
            **kwargs: `tools` and `chat_template_kwargs`, one entry per completion, go to the chat template; the other
                columns that TRL passes to reward functions are ignored.

        Returns:
            float32 rewards, one per completion.

        Raises:
            TypeError: a text or a mapping in place of a list of rows.
            ValueError: lists of different lengths; a row that is neither text nor messages, or mixes both; a text
                longer than `max_length`. The message names the row.
        """
        return self.score_ids(self.encode_rows(prompts, completions, **kwargs), is_progress_shown=is_progress_shown)

    def encode_rows(self, prompts: Iterable[Text | None], completions: Iterable[Text], **kwargs) -> list[list[int]]:
        """The checked tokens of each row, for `score_ids`; arguments and errors as in a call."""
        prompts, completions = as_list("prompts", prompts), as_list("completions", completions)
        check_same_length({"prompts": prompts, "completions": completions})
        columns = {name: as_list(name, kwargs[name]) for name in _TEMPLATE_COLUMNS if kwargs.get(name) is not None}
        for name, values in columns.items():
            check_same_length({"completions": completions, f"`{name}`": values})
        rows = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                own = template_kwargs({name: values[number] for name, values in columns.items()})
                rows.append(self.encode(prompt, completion, own))
            except ValueError as error:
                raise ValueError(f"Row {number}: {error}") from error
        return rows

    def encode(self, prompt: Text | None, completion: Text, template_kwargs: dict) -> list[int]:
        """The checked tokens of one text, for `score_ids`; arguments and errors as in a call.

        Args:
            template_kwargs: arguments of the chat template (see `formatting.template_kwargs`).
        """
        prompt, completion = normal_text(prompt), completion if is_missing(completion) else normal_text(completion)
        check_response(completion, "The completion")
        if is_messages(prompt) and prompt and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        self.formatter.check(prompt, completion)
        if prompt is not None and isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError(
                f"The prompt is {type(prompt).__name__}, the completion {type(completion).__name__}; use text for "
                "both or messages for both."
            )
        self._warn_of_control_tokens(prompt, completion, template_kwargs)
        ids = self.formatter.encode(prompt, completion, **template_kwargs)
        self._refuse_over_long(len(ids))
        return ids

    def _refuse_over_long(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"A text has {length} tokens, more than max_length={self.max_length}. Truncation would change "
                "the reward: leave it out, or raise `max_length`."
            )

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if `score_ids` would refuse a row of so many tokens, or `encode` its text."""
        self._refuse_over_long(length)
        self._check_positions(length)
        self.batches([length])

    def _warn_of_control_tokens(self, prompt: Text | None, completion: Text, template_kwargs: dict) -> None:
        """Warn, once per scorer, of a message that spells a control token."""
        if self._has_warned_of_control_tokens or isinstance(completion, str) or template_kwargs.get(SANITIZE):
            return
        if self.formatter.spells_control_token([*(prompt or []), *completion]):
            self._has_warned_of_control_tokens = True
            logger.warning(
                "A message spells a control token of the tokenizer, and is read as that token, as in training and on "
                f"servers (warned once). `chat_template_kwargs` with `{SANITIZE}` has it read as text; see "
                "docs/security.md."
            )

    def score_ids(
        self,
        rows: Sequence[Sequence[int]],
        *,
        positions: Sequence[Sequence[int]] | None = None,
        is_progress_shown: bool = False,
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
            ValueError: the model gives a text another reward in a batch than alone.
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
            return self.model(**inputs).logits[:, 0].float()
