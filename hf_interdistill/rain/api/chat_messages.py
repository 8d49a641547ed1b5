"""The messages that a prompt was rendered from, where the chat template proves it.

A judge or a reward model should see a conversation as messages, not as text with the generating model's markup. The
template shows how it separates roles when it renders known messages. A prompt is split there, and the result counts
only if it renders to the very same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

_PROBES = ("Kx7a", "Kx7b", "Kx7c", "Kx7d")  # contents that no template contains or trims
_FAILURES = (TemplateError, ValueError, TypeError, KeyError, IndexError)  # what templates raise for roles they refuse

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class _Markup:
    """What a template writes around contents; `start_system` and `system_user` are empty if it takes no system."""

    start_user: str
    user_assistant: str
    assistant_user: str
    end: str
    start_system: str = ""
    system_user: str = ""


def recover_messages(tokenizer, ids: Sequence[int]) -> Messages | None:
    """The messages of a rendered prompt, or `None` if it cannot be proved that they are those.

    Args:
        tokenizer: the model's, with the chat template that may have rendered the prompt.
        ids: token ids of the prompt, with the generation prompt at the end.
    """
    markup = _markup(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if markup is None:
        return None
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    messages = _split(text, markup)
    if messages is None:
        return None
    rendered = _render(tokenizer, messages)
    if rendered is None or tokenizer(rendered, add_special_tokens=False)["input_ids"] != list(ids):
        return None
    return messages


def has_chat_markup(tokenizer, ids: Sequence[int]) -> bool:
    """Whether a prompt holds special tokens that its tokenizer's chat template writes between messages."""
    markup = _markup(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if markup is None:
        return False
    between = tokenizer(markup.user_assistant + markup.end, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return not special.isdisjoint(between) and not (special & set(between)).isdisjoint(ids)


def _render(tokenizer, messages: Messages) -> str | None:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except _FAILURES:
        return None


def _markup(tokenizer) -> _Markup | None:
    first, second, third, system = _PROBES
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": content} for role, content in zip(roles, _PROBES, strict=False)]
    parts = _parts(_render(tokenizer, turns), (first, second, third))
    if parts is None or not all(parts[1:]):
        return None
    with_system = _parts(_render(tokenizer, [{"role": "system", "content": system}, turns[0]]), (system, first))
    if with_system is None or not all(with_system[:2]):
        return _Markup(*parts)
    return _Markup(*parts, *with_system[:2])


def _parts(text: str | None, contents: Sequence[str]) -> list[str] | None:
    """What stands before, between and after the contents, or `None` if one of them is not there once, in order."""
    parts = []
    for content in contents:
        if text is None or text.count(content) != 1:
            return None
        before, _, text = text.partition(content)
        parts.append(before)
    return [*parts, text or ""]


def _split(text: str, markup: _Markup) -> Messages | None:
    if not text.endswith(markup.end):
        return None
    messages: Messages = []
    if markup.start_system and text.startswith(markup.start_system) and not text.startswith(markup.start_user):
        content, separator, text = text[len(markup.start_system) :].partition(markup.system_user)
        if not separator:
            return None
        messages.append({"role": "system", "content": content})
    elif text.startswith(markup.start_user):
        text = text[len(markup.start_user) :]
    else:
        return None
    text, role = text[: len(text) - len(markup.end)], "user"
    separators = {"user": markup.user_assistant, "assistant": markup.assistant_user}
    while True:
        content, separator, rest = text.partition(separators[role])
        messages.append({"role": role, "content": content})
        if not separator:
            return messages
        text, role = rest, "assistant" if role == "user" else "user"
