"""Judge prompts: a few examples, an exchange, and a question that a label answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from ...scoring.formatting import is_messages
from ...utils.fields import refuse_unknown
from .base import Exchange

PROMPTS = Path(__file__).parent / "prompts"
_ROLES = ("Human:", "User:", "Assistant:", "System:", "Tool:")
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_QUOTE = "> "


@dataclass(frozen=True)
class JudgePrompt:
    """A few-shot prompt that ends where a label comes next.

    A text to judge could write lines of the prompt's own (`Question:`, `(A)`, `Assistant:`) and so end its item and
    begin another. Such lines are quoted: `> ` is put before them. In a completion these are all the prompt's own line
    beginnings and the names of roles, in a prompt those of the question.

    Args:
        name: for messages.
        examples: the text that stands before every exchange (read once).
        plain: an exchange whose prompt is text, with `{prompt}` and `{completion}`.
        chat: one whose prompt is messages; `{prompt}` is lines of `Role: content`.
        question: the question, with `{first}` and `{second}` where the options stand.
        positive: the option that is worth 1. negative: the one that is worth -1.
        labels: what the model answers for the first and for the second option.
        orders: 2 asks again with the options swapped; 1 asks once, the positive option first.
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
        """A prompt of ours by name, or a YAML file with the fields above."""
        if isinstance(source, cls):
            return source
        path = PROMPTS / f"{source}.yaml"
        if not path.is_file():
            path = Path(source)
        if not path.is_file():
            names = sorted(each.stem for each in PROMPTS.glob("*.yaml"))
            raise ValueError(
                f"There is no judge prompt `{source}`: it is neither one of {', '.join(names)} nor a YAML file."
            )
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold the fields of a judge prompt, but holds a {type(values).__name__}.")
        refuse_unknown(f"The judge prompt {path}", values, (each.name for each in fields(cls)))
        missing = [name for name in ("examples", "plain", "question") if name not in values]
        if missing:
            raise ValueError(f"The judge prompt {path} lacks {', '.join(missing)}.")
        return cls(**{"name": path.stem, **values})

    def texts(self, exchange: Exchange) -> list[str]:
        """The full text of each order, up to the label."""
        template = self.chat if is_messages(exchange.prompt) else self.plain
        in_question = _line_beginnings(self.question)
        in_exchange = _line_beginnings(self.plain) | _line_beginnings(self.chat)
        in_exchange |= set(_ROLES) if template is self.chat else set()
        prompt = quote_lines(exchange.prompt_text(), in_question, _begins_line(template, "prompt"))
        completion = quote_lines(exchange.completion, in_question | in_exchange, _begins_line(template, "completion"))
        shown = _fill(template, prompt=prompt, completion=completion)
        orders = [(self.positive, self.negative), (self.negative, self.positive)][: self.orders]
        return [self.examples + shown + _fill(self.question, first=first, second=second) for first, second in orders]


def _line_beginnings(template: str) -> set[str]:
    """What the lines of a template begin with: `Word:`, or the text before the first placeholder."""
    found = set()
    for line in template.splitlines():
        literal = re.split(r"\{\w+\}", line)[0].strip()
        name = re.match(r"\w+ ?:", literal)
        found.add(name[0] if name else literal)
    return {literal for literal in found if re.search(r"\w", literal)}


def _begins_line(template: str, name: str) -> bool:
    return re.search(rf"(^|\n)\{{{name}\}}", template) is not None


def quote_lines(text: str, beginnings: set[str], is_at_line_start: bool = False) -> str:
    """The text with `> ` before every line that begins as one of the judge prompt's own, in whatever case.

    Args:
        text: of a stranger.
        beginnings: of lines (`Question:`, `(A)`).
        is_at_line_start: whether the text itself begins a line.
    """
    if not beginnings:
        return text
    start = rf"(?:^|(?<=[{_BREAKS}]))" if is_at_line_start else rf"(?<=[{_BREAKS}])"
    blank = rf"(?:[^\S{_BREAKS}]|[\u200b-\u200f\u2060\ufeff])*"
    longest_first = sorted(beginnings, key=len, reverse=True)
    own = "|".join(re.sub(r" ?:$", lambda _: f"{blank}[:\uff1a]", re.escape(each)) for each in longest_first)
    return re.sub(rf"{start}(?={blank}(?:{own}))", _QUOTE, text, flags=re.IGNORECASE)


def _fill(template: str, **values: str) -> str:
    """Replace `{name}` once, so that braces in the values stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match.group(1)], template)


def label_tokens(prompt: JudgePrompt, tokenizer) -> tuple[int, int]:
    """Token ids of the two labels where they come after the question.

    Raises:
        ValueError: they are not one token each, the same, or unknown to the tokenizer.
    """
    text = prompt.texts(Exchange("a", "a"))[0]
    first, second = (tokenizer(text + label, verbose=False)["input_ids"] for label in prompt.labels)
    is_single = len(first) == len(second) and first[:-1] == second[:-1]
    unknown = tokenizer.unk_token_id
    if not is_single or first[-1] == second[-1] or unknown in (first[-1], second[-1]):
        tokens = [tokenizer.convert_ids_to_tokens(ids[-2:]) for ids in (first, second)]
        raise ValueError(
            f"The judge cannot tell the labels {prompt.labels[0]!r} and {prompt.labels[1]!r} apart: with this "
            f"tokenizer the text ends with {tokens[0]} and {tokens[1]}, but each label must be one known token of its "
            "own after the same text. Choose other `labels` in the judge prompt, or another judge."
        )
    return first[-1], second[-1]
