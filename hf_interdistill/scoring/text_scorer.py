"""From prompts and completions to checked tokens: the common part of all scorers, whatever computes the rewards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from ..utils.fields import require_positive
from .checks import as_list, check_response, check_same_length
from .control_tokens import SANITIZE
from .formatting import RewardFormatter, Text, is_messages, normal_text, template_kwargs
from .normal_form import is_missing
from .prompts import TEMPLATE_COLUMNS

logger = logging.getLogger(__name__)


class TextScorer:
    """Base class of scorers of texts: `scorer(prompts, completions) -> list[float]`. Implement `score_ids`.

    Args:
        tokenizer: of the reward model.
        batch_size: completions that are read together.
        max_length: completions whose text is longer are an error; `None` for no limit.
        formatter: makes the rows of `score_ids`; by default a `RewardFormatter`, whose rows are tokens.

    Attributes:
        last_token_counts: tokens processed per completion in the last call.
        last_forward_passes: forward passes of the last call, or requests.
    """

    def __init__(self, tokenizer, batch_size: int, max_length: int | None, formatter: Any = None):
        require_positive("batch_size", batch_size)
        require_positive("max_length", max_length, is_optional=True)
        self.tokenizer, self.batch_size, self.max_length = tokenizer, batch_size, max_length
        self.last_token_counts: list[int] = []
        self.last_forward_passes = 0
        self.formatter: Any = formatter or RewardFormatter(tokenizer, is_date_warned=True)
        self._has_warned_of_control_tokens = False
        self.__name__ = type(self).__name__

    def score_ids(self, rows: Sequence[Sequence[int]], *, is_progress_shown: bool = False) -> list[float]:
        """Rewards of token rows, as `RewardFormatter.encode` makes them."""
        raise NotImplementedError

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
            the assistant's message. Both may be any iterable with one entry per row. **kwargs: `tools` and
                `chat_template_kwargs`, one entry per completion, go to the chat template; the other columns that TRL
                passes to reward functions are ignored.

        Returns:
            float32 rewards, one per completion.

        Raises:
            TypeError: a text or a mapping in place of a list of rows.
            ValueError: lists of different lengths; a row that is neither text nor messages, or mixes both; a text
                longer than `max_length`. The message names the row.
        """
        return self.score_ids(self.encode_rows(prompts, completions, **kwargs), is_progress_shown=is_progress_shown)

    def encode_rows(self, prompts: Iterable[Text | None], completions: Iterable[Text], **kwargs) -> list[Any]:
        """The checked tokens of each row, for `score_ids`; arguments and errors as in a call."""
        prompts, completions = as_list("prompts", prompts), as_list("completions", completions)
        check_same_length({"prompts": prompts, "completions": completions})
        columns = {name: as_list(name, kwargs[name]) for name in TEMPLATE_COLUMNS if kwargs.get(name) is not None}
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
