"""Opposite instructions, their answers, and the places of a prompt where an instruction is planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...scoring.formatting import Messages, Text, message_texts

_HELP = "I will gladly help you with that."


@dataclass(frozen=True)
class Contrast:
    """Two opposite instructions, and an answer to each that fits any question.

    Args:
        kind: a name. instructions: they differ in their last words. answers: they differ in their first word; each
            follows the instruction of its number and breaks the other one.
    """

    kind: str
    instructions: tuple[str, str]
    answers: tuple[str, str]


CONTRASTS = (
    Contrast(
        "name",
        ("Begin your answer with my name, which is Anna.", "Begin your answer with my name, which is Robert."),
        (f"Anna, {_HELP}", f"Robert, {_HELP}"),
    ),
    Contrast(
        "language",
        ("Answer only in French.", "Answer only in German."),
        ("Volontiers, je vais vous aider.", "Gerne, ich werde Ihnen helfen."),
    ),
    Contrast(
        "word",
        ('Begin your answer with the word "Maple".', 'Begin your answer with the word "Copper".'),
        (f"Maple. {_HELP}", f"Copper. {_HELP}"),
    ),
    Contrast(
        "letters",
        ("Write your whole answer in capital letters.", "Write your whole answer in lowercase letters."),
        (_HELP.upper(), _HELP.lower()),
    ),
)


def plant(prompt: Text, instruction: str, is_first: bool) -> Text | None:
    """The prompt with an instruction at the beginning of the first user turn, or at the end of the last one.

    A text has one turn, itself. If its last line is a name with a colon (`Assistant:`), this line stays last, and a
    name at its beginning (`Human:`) first.

    Returns:
        the prompt; `None` if it has no user turn with a text.
    """

    def join(text: str) -> str:
        return f"{instruction}\n\n{text}" if is_first else f"{text.rstrip()}\n\n{instruction}"

    if isinstance(prompt, str):
        head, body, tail = _text_parts(prompt)
        return head + join(body) + tail
    numbers = [n for n, each in enumerate(prompt) if each["role"] == "user" and any(message_texts(each))]
    return _changed(prompt, numbers[0 if is_first else -1], join, is_first) if numbers else None


def _text_parts(prompt: str) -> tuple[str, str, str]:
    """What stays in front, the text, and what stays behind."""
    tail = re.search(r"\n\s*[^\n:]{1,30}:\s*$", prompt)
    if tail is None:
        end = prompt[len(prompt.rstrip()) :]
        return "", prompt[: len(prompt) - len(end)], end or "\n\n"
    body = prompt[: tail.start()]
    head = re.match(r"\s*[^\n:]{1,30}:[ \t]*", body)
    size = head.end() if head else 0
    return body[:size], body[size:], prompt[tail.start() :]


def _changed(messages: Messages, number: int, join: Callable[[str], str], is_first: bool) -> Messages:
    message = messages[number]
    content = message["content"]
    if isinstance(content, str):
        content = join(content)
    else:
        texts = [index for index, part in enumerate(content) if part.get("type") == "text"]
        index = texts[0 if is_first else -1]
        content = [
            {**part, "text": join(part["text"])} if place == index else part for place, part in enumerate(content)
        ]
    return [*messages[:number], {**message, "content": content}, *messages[number + 1 :]]


def as_answer(prompt: Text, answer: str, role: str) -> Text:
    """An answer to a planted prompt, of the prompt's kind."""
    if not isinstance(prompt, str):
        return [{"role": role, "content": answer}]
    return answer if not prompt or prompt[-1].isspace() else f" {answer}"
