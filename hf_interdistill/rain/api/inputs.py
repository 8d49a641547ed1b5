"""From what `generate` has prepared to prompts for the engine."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria

from ...utils.context_length import context_length
from ...utils.json_lines import refuse_half_characters
from ..engine.engine import Prompt
from ..engine.stopping import StopConditions
from ..results.records import RainRecord
from .chat_messages import has_chat_markup, recover_messages
from .checks import check_model
from .row_processors import RowCriterion, RowProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedGeneration:
    """What `generate` has prepared for a batch of rows.

    Args:
        generation_config: the full config; `max_length` counts from the padded start of a row.
        scorer_prompts: what scorers see as the prompt (text or messages), one per row.
        logits_processor: shape candidates and rollouts.
        stopping_criteria: end a text.
    """

    generation_config: Any
    scorer_prompts: Sequence[Any]
    logits_processor: Sequence[Any] | None = None
    stopping_criteria: Sequence[Any] | None = None


def strip_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[tuple[int, ...]]:
    """Token ids of each row of `(rows, length)` without its left padding.

    Raises:
        ValueError: there is padding on the right or inside, or a prompt is empty.
    """
    rows = []
    for number, ids in enumerate(input_ids.tolist()):
        if attention_mask is not None:
            mask = attention_mask[number].bool().tolist()
            start = mask.index(True) if any(mask) else len(mask)
            if not all(mask[start:]):
                raise ValueError(
                    f"The attention mask of prompt {number} has padding on the right or inside, but a row must end "
                    "with its prompt. Set `tokenizer.padding_side = 'left'`."
                )
            ids = ids[start:]
        if not ids:
            raise ValueError(
                f"Prompt {number} is empty, but RAIN needs at least one token to continue. Give it some text, or the "
                "BOS token."
            )
        rows.append(tuple(ids))
    return rows


def new_token_limit(model, length: int, allowed: int) -> tuple[int, str]:
    """Maximum number of new tokens, and what limits it: `length` or the model's `context`.

    Args:
        model: the model. length: tokens of the prompt.
        allowed: new tokens that the user allows.

    Raises:
        ValueError: no token is allowed, or the prompt fills the context.
    """
    if allowed < 1:
        raise ValueError(
            f"`max_new_tokens` or `max_length` allows {allowed} new tokens, but RAIN needs at least one. Raise the "
            "limit."
        )
    context = context_length(model)
    if context is None:
        return allowed, "length"
    if length >= context:
        raise ValueError(
            f"The prompt has {length} tokens, but the model's context is {context}, which leaves no room for new "
            "tokens. Shorten the prompt."
        )
    return (allowed, "length") if allowed <= context - length else (context - length, "context")


def prepare_generation(
    model,
    generation_config,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    new_tokens: int | None = None,
    **processors: Any,
) -> tuple[Any, list]:
    """Prepare a generation config and its logits processors as `generate` does, for callers outside of it.

    Args:
        model: the model. generation_config: as for `generate`; the model's own config supplies missing values.
        input_ids, attention_mask: `(rows, length)`.
        new_tokens: maximum number of new tokens; `None` means that of the configs, else the context length.
        processors: `logits_processor` and `prefix_allowed_tokens_fn`, as for `generate`.

    Returns:
        The full generation config, and the list of logits processors.
    """
    settings, _ = model._prepare_generation_config(generation_config)
    check_model(model, settings)
    options = {"device": input_ids.device, "batch_size": len(input_ids)}
    known = inspect.signature(model._prepare_special_tokens).parameters  # transformers 5.1 takes no batch size
    model._prepare_special_tokens(settings, True, **{name: options[name] for name in options if name in known})
    length = input_ids.shape[1]
    if new_tokens is None:
        new_tokens = _configured_length(model, generation_config, settings, length)
    settings.max_length = length + new_tokens
    if settings.min_new_tokens is not None:
        settings.min_length = length + settings.min_new_tokens
    prepared = model._get_logits_processor(
        generation_config=settings,
        input_ids_seq_length=length,
        encoder_input_ids=input_ids,
        device=input_ids.device,
        model_kwargs={"attention_mask": attention_mask},
        **processors,
    )
    return settings, list(prepared)


def _configured_length(model, generation_config, settings, length: int) -> int:
    """New tokens that the configs allow after `length` tokens; by default the context length."""
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens
    for config in (generation_config, model.generation_config):
        if getattr(config, "max_length", None) is not None:
            return config.max_length - length
    context = context_length(model)
    if context is None:
        raise ValueError(
            "The maximum length is unknown: there is neither `max_new_tokens` nor a context length in the model's "
            "config. Pass `max_new_tokens`."
        )
    return context


def build_prompts(model, input_ids, attention_mask, prepared: PreparedGeneration) -> list[Prompt]:
    """Prompts of a padded batch.

    Args:
        model: the model. input_ids, attention_mask: `(rows, length)`.
        prepared: settings of the batch.
    """
    config = prepared.generation_config
    given = list(prepared.stopping_criteria or ())
    # The user's own replace those that generate makes of its settings.
    ends = [
        token
        for criterion in given
        if isinstance(criterion, EosTokenCriteria)
        for token in criterion.eos_token_id.tolist()
    ]
    lengths = [criterion.max_length for criterion in given if isinstance(criterion, MaxLengthCriteria)]
    eos = config.eos_token_id
    eos_ids = frozenset(ends) if ends else frozenset([eos] if isinstance(eos, int) else eos or [])
    allowed = min(lengths, default=config.max_length) - input_ids.shape[1]
    deadlines = [each.initial_timestamp + each.max_time for each in given if isinstance(each, MaxTimeCriteria)]
    made_of_settings = EosTokenCriteria | MaxLengthCriteria | MaxTimeCriteria
    criteria = [criterion for criterion in given if not isinstance(criterion, made_of_settings)]
    prompts = []
    rows = strip_padding(input_ids, attention_mask)
    for row, (ids, scorer_prompt) in enumerate(zip(rows, prepared.scorer_prompts, strict=True)):
        place = row, len(rows), input_ids[row, : input_ids.shape[1] - len(ids)]
        limit, limit_name = new_token_limit(model, len(ids), allowed)
        stop = StopConditions(
            limit,
            eos_ids,
            tuple(RowCriterion(criterion, *place) for criterion in criteria),
            tuple(RowProcessor(processor, *place) for processor in prepared.logits_processor or ()),
            limit_name,
            min(deadlines, default=None),
        )
        prompts.append(Prompt(ids, scorer_prompt, stop))
    return prompts


def prompts_for_scorers(
    tokenizer, rows: Sequence[Sequence[int]], user_prompts: Sequence[Any] | None, copies: int
) -> list[Any]:
    """What scorers see as the prompt of each row.

    These are the user's prompts (text or messages); else the messages that the row was rendered from, where the chat
    template proves them; else the decoded tokens.

    Args:
        tokenizer: the model's. rows: token ids without padding. user_prompts: `rain_prompts`, or `None`.
        copies: rows per prompt (`num_return_sequences`).
    """
    if user_prompts is None:
        return [_recovered(tokenizer, row) for row in rows]
    user_prompts = list(user_prompts)
    refuse_half_characters(user_prompts, "`rain_prompts`")
    if len(user_prompts) * copies != len(rows):
        raise ValueError(
            f"`rain_prompts` has {len(user_prompts)} prompts, but there are {len(rows) // copies} in `input_ids`. "
            "Pass one per prompt."
        )
    return [prompt for prompt in user_prompts for _ in range(copies)]


def _recovered(tokenizer, row: Sequence[int]) -> Any:
    """Messages of a rendered prompt, or its text."""
    messages = recover_messages(tokenizer, row)
    if messages is not None:
        return messages
    if has_chat_markup(tokenizer, row):
        _warn_once(
            "A prompt has a chat template's markup, but its messages could not be recovered, so scorers see it as "
            "plain text without the markup. Pass the messages as `rain_prompts=[messages, ...]`."
        )
    return tokenizer.decode(row, skip_special_tokens=True)


def warn_of_empty_answer(tokenizer, ids: Sequence[int], record: RainRecord) -> None:
    """Warn if an answer is EOS alone, and the prompt is text without the markup of the tokenizer's chat template."""
    if record.finish_reason != "eos" or record.text.strip() or not getattr(tokenizer, "chat_template", None):
        return
    if recover_messages(tokenizer, ids) is None and not has_chat_markup(tokenizer, ids):
        _warn_once(
            "An answer is empty: the model ended it at once. Its tokenizer has a chat template, but the prompt was "
            "not rendered with it. Pass `tokenizer.apply_chat_template(messages, add_generation_prompt=True, "
            "return_tensors='pt', return_dict=True)`; in a job, write the prompt as messages."
        )


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
