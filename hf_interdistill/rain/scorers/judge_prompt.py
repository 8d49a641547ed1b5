"""Judge prompts: few-shot examples, the exchange to judge, and a question whose answer is a label."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from ...scoring.formatting import is_messages
from ...utils.fields import refuse_unknown
from ...utils.sources import close_names
from .base import Exchange
from .prompt_texts import judge_prompts

_ROLES = ("Human:", "User:", "Assistant:", "System:", "Tool:")
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_QUOTE = "> "


@dataclass(frozen=True)
class JudgePrompt:
    """A few-shot prompt whose next token is a label.

    A text could imitate lines of the judge prompt (`Question:`, `(A)`, `Assistant:`), to end its own item and start
    another. Such lines are quoted with `> `. In a completion, these are lines that start like any line of the judge
    prompt or like a role name. In a prompt, these are lines that start like a line of the question.

    Args:
        name: used in error messages.
        examples: the text before every exchange; the judge reads it once.
        plain: template of an exchange whose prompt is text, with `{prompt}` and `{completion}`.
        chat: template of an exchange whose prompt is messages; `{prompt}` becomes lines of `Role: content`.
        question: the question, with `{first}` and `{second}` in place of the options.
        positive: the option with value 1. negative: the option with value -1.
        labels: the answers that stand for the first and for the second option.
        orders: 2 asks again with the options swapped; 1 asks once, with the positive option first.
    """

    name: str
    examples: str
    plain: str
    question: str
    positive: str = ""
    negative: str = ""
    chat: str = "{prompt}\nAssistant: {completion}"
    labels: tuple[str, str] = ("A", "B")
    orders: int = 2

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.orders not in (1, 2):
            raise ValueError(f"`orders` of judge prompt {self.name!r} is {self.orders}, but must be 1 or 2.")
        if len(self.labels) != 2:
            raise ValueError(f"`labels` of judge prompt {self.name!r} are {self.labels}, but there must be two.")
        for name in ("plain", "chat"):
            if "{completion}" not in getattr(self, name):
                raise ValueError(f"`{name}` of judge prompt {self.name!r} lacks `{{completion}}`, the text to judge.")
        if self.orders == 2 and not ("{first}" in self.question and "{second}" in self.question):
            raise ValueError(
                f"The question of judge prompt {self.name!r} lacks `{{first}}` or `{{second}}`, so the options cannot "
                "be swapped. Add them, or set `orders: 1`."
            )

    @classmethod
    def load(cls, source: str | Path | JudgePrompt) -> JudgePrompt:
        """A judge prompt of this package by name, or a YAML file with the fields above."""
        if isinstance(source, JudgePrompt):
            return source
        known, path = judge_prompts(), Path(source)
        if str(source) not in known and not path.is_file():
            raise ValueError(
                f"There is no judge prompt `{source}`: it is neither one of {', '.join(known)} nor a YAML file."
                f"{close_names(path)}"
            )
        try:
            text = known.get(str(source)) or path.read_text(encoding="utf-8")
            values = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"The judge prompt {path} is not valid YAML, or not UTF-8: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold the fields of a judge prompt, but holds a {type(values).__name__}.")
        refuse_unknown(f"The judge prompt {path}", values, (each.name for each in fields(cls)))
        missing = [name for name in ("examples", "plain", "question") if name not in values]
        if missing:
            raise ValueError(f"The judge prompt {path} lacks {', '.join(missing)}.")
        return cls(**{"name": path.stem, **values})

    def texts(self, exchange: Exchange) -> list[str]:
        """The full text for each order, up to the label."""
        template = self.chat if is_messages(exchange.prompt) else self.plain
        in_question = _line_starts(self.question)
        in_exchange = _line_starts(self.plain) | _line_starts(self.chat)
        in_exchange |= set(_ROLES) if template is self.chat else set()
        prompt = quote_lines(exchange.prompt_text(), in_question, _starts_line(template, "prompt"))
        completion = quote_lines(exchange.completion, in_question | in_exchange, _starts_line(template, "completion"))
        start = self.examples + _fill(template, prompt=prompt, completion=completion)
        orders = [(self.positive, self.negative), (self.negative, self.positive)][: self.orders]
        return [start + _fill(self.question, first=first, second=second) for first, second in orders]


def _line_starts(template: str) -> set[str]:
    """How the lines of a template start: `Word:`, or the text before the first placeholder."""
    found = set()
    for line in template.splitlines():
        literal = re.split(r"\{\w+\}", line)[0].strip()
        name = re.match(r"\w+ ?:", literal)
        found.add(name[0] if name else literal)
    return {literal for literal in found if re.search(r"\w", literal)}


def _starts_line(template: str, name: str) -> bool:
    return re.search(rf"(^|\n)\{{{name}\}}", template) is not None


def quote_lines(text: str, starts: set[str], is_at_line_start: bool = False) -> str:
    """The text with `> ` before every line that starts like a line of the judge prompt, in any case.

    Args:
        text: untrusted text.
        starts: how lines of the judge prompt start (`Question:`, `(A)`).
        is_at_line_start: whether the text itself starts a line.
    """
    if not starts:
        return text
    boundary = rf"(?:^|(?<=[{_BREAKS}]))" if is_at_line_start else rf"(?<=[{_BREAKS}])"
    blank = rf"(?:[^\S{_BREAKS}]|[\u200b-\u200f\u2060\ufeff])*"
    longest_first = sorted(starts, key=len, reverse=True)
    own = "|".join(re.sub(r" ?:$", lambda _: f"{blank}[:\uff1a]", re.escape(each)) for each in longest_first)
    return re.sub(rf"{boundary}(?={blank}(?:{own}))", _QUOTE, text, flags=re.IGNORECASE)


def _fill(template: str, **values: str) -> str:
    """Replace `{name}` in one pass, so that braces in the values stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match.group(1)], template)


def label_tokens(prompt: JudgePrompt, tokenizer) -> tuple[int, int]:
    """Token ids of the two labels after the question.

    Raises:
        ValueError: a label is not a single token, is unknown to the tokenizer, or both are the same token.
    """
    text = prompt.texts(Exchange("a", "a"))[0]
    first, second = (tokenizer(text + label, verbose=False)["input_ids"] for label in prompt.labels)
    is_single = len(first) == len(second) and first[:-1] == second[:-1]
    unknown = tokenizer.unk_token_id
    if not is_single or first[-1] == second[-1] or unknown in (first[-1], second[-1]):
        tokens = [tokenizer.convert_ids_to_tokens(ids[-2:]) for ids in (first, second)]
        raise ValueError(
            f"The judge cannot tell the labels {prompt.labels[0]!r} and {prompt.labels[1]!r} apart: with this "
            f"tokenizer the text ends with {tokens[0]} and {tokens[1]}, but after the same text each label must be a "
            "distinct single token that the tokenizer knows. Choose other `labels` in the judge prompt, or another "
            "judge."
        )
    return first[-1], second[-1]
