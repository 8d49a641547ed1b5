"""Chat templates that write today's date (`strftime_now`), so that a row has other tokens on another day."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

_CLOCK = "strftime_now"
_MARK = "Q7dQ"
# Put before a template, it writes the format of a date between marks in place of the date.
_STOPPED_CLOCK = f"{{% macro {_CLOCK}(format) %}}{_MARK}{{{{ format }}}}{_MARK}{{% endmacro %}}"
_EXAMPLE = datetime(2024, 7, 26)


def date_warning(tokenizer, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> str | None:
    """The warning for a chat template that writes today's date into a conversation, with a way to fix the date that
    was tried on it. `None` if it writes none.

    Args:
        tokenizer: with the template.
        messages: the conversation. kwargs: for `apply_chat_template`.
    """
    template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
    if _CLOCK not in template or not (formats := _formats_written(tokenizer, messages, kwargs)):
        return None
    example = _EXAMPLE.strftime(formats[0])
    names = set(re.findall(r"[a-z_]*(?:date|today|time|day)[a-z_]*", template)) - {_CLOCK}
    for name in sorted(names):
        fixed = {**kwargs, name: example}
        if not _formats_written(tokenizer, messages, fixed) and example in _render(tokenizer, messages, fixed):
            way = (
                f"Fix the date: give each row `chat_template_kwargs={{{name!r}: {example!r}}}` (a column of the "
                "dataset in training, an argument of `RewardScorer`), the same in both."
            )
            break
    else:
        way = (
            f"The template takes no date from outside: replace its `{_CLOCK}(...)` in `tokenizer.chat_template` by "
            f"a fixed date such as {example!r} before training; the tokenizer is saved with the model."
        )
    return (
        f"The chat template writes today's date ({datetime.now().strftime(formats[0])!r}, `{_CLOCK}`), so the same "
        f"row has other tokens on another day than in training, and its reward drifts. {way}"
    )


def _formats_written(tokenizer, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> list[str]:
    """The formats of the dates that are in the rendered text."""
    template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
    text = _render(tokenizer, messages, {**kwargs, "chat_template": _STOPPED_CLOCK + template})
    return re.findall(f"{_MARK}(.*?){_MARK}", text, re.DOTALL)


def _render(tokenizer, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
