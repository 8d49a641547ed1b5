"""From a preference or a (prompt, completion) to the exact text and tokens that a reward model reads.

One formatter serves training, scoring and serving, so that what is scored is what was trained. It follows TRL's
`RewardTrainer`: plain text is `prompt + completion + EOS` with the tokenizer's usual special tokens, messages go
through the chat template and get nothing added.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from jinja2 import TemplateError

from .checks import check_response, check_text
from .content_spans import ContentSpan, find_contents
from .control_tokens import (
    SANITIZE,
    control_pattern,
    encode_pieces,
    marked,
    marked_pieces,
    require_sanitizing,
)
from .normal_form import is_missing, normal_list, normal_value
from .template_dates import date_warning

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Text = str | Messages


@dataclass(frozen=True)
class RenderedText:
    """A text as the model reads it, and where each piece of content is in it.

    `contents` are the flat list of message contents, or prompt and completion of a plain text without an EOS of the
    user; `spans` (with that EOS) are the runs of their characters in `text`, in its order: a
    template may drop, strip, move or take apart a content. `pieces` are those of the text in which control tokens of
    the user are text (every second one), or `None` where they are tokens; `ids` are then the tokens.
    """

    text: str
    contents: tuple[str, ...]
    spans: tuple[ContentSpan, ...]
    pieces: tuple[str, ...] | None = None
    ids: tuple[int, ...] | None = None


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether `value` is a list of chat messages (an empty list counts: a prompt may be empty)."""
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def message_texts(message: dict[str, Any]) -> list[str]:
    """The texts of one message: its content, or the text parts of a structured content; none where there is none."""
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part.get("type") == "text"]


def _with_texts(message: dict[str, Any], texts: Iterator[str]) -> dict[str, Any]:
    content = message.get("content")
    if content is None:
        return message
    if isinstance(content, str):
        return {**message, "content": next(texts)}
    parts = [{**part, "text": next(texts)} if part.get("type") == "text" else part for part in content]
    return {**message, "content": parts}


def normal_text(value: Any) -> Any:
    """A prompt or completion, whatever container it comes from: a text; messages in their normal form; `None` for a
    missing one. Other values are returned unchanged."""
    if is_missing(value) or isinstance(value, str):
        return None if is_missing(value) else value
    return normal_list(value)


def template_kwargs(example: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `apply_chat_template` that a row carries: `tools` (list or JSON) and
    `chat_template_kwargs`, read as `RewardTrainer` reads them, in their normal form. Tools in JSON are left as they
    are.

    Raises:
        ValueError: text that is not JSON; tools that are not a list of tools; arguments that are not a mapping.
    """
    tools, others = (_from_json(name, example.get(name)) for name in ("tools", "chat_template_kwargs"))
    if not isinstance(example.get("tools"), str):
        tools = normal_list(tools)
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) or callable(tool) for tool in tools)
    ):
        raise ValueError(
            f"`tools` is {tools!r:.80}, but must be a list of tools (`[{{'type': 'function', 'function': ...}}]`), or "
            "this list as JSON. Correct it, or leave it out."
        )
    if others is not None and not isinstance(others, Mapping):
        raise ValueError(
            f"`chat_template_kwargs` is {others!r:.80}, but must be a `dict` of arguments of the chat template, or "
            "this as JSON. Correct it, or leave it out."
        )
    others = {} if others is None else normal_value(others)
    taken = [name for name in ("tools", "conversation", "tokenize", "return_dict") if name in others]
    if taken:
        raise ValueError(
            f"`chat_template_kwargs` holds `{taken[0]}`, which is not a variable of a chat template. Leave it out; "
            "tools "
            "have a column of their own, `tools`."
        )
    return {"tools": tools, **others}


def _from_json(name: str, value: Any) -> Any:
    """The value of a column that may be JSON; `None` where it is missing."""
    if is_missing(value) or not isinstance(value, str):
        return None if is_missing(value) else value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{name}` is the text {value!r:.80}, which is not JSON ({error}). Write it with `json.dumps`, or leave "
            "it out."
        ) from None


class RewardFormatter:
    """Formats prompts and completions for a reward model.

    Args:
        tokenizer: the model's tokenizer. Messages need its chat template, text its EOS token.
        is_date_warned: whether to warn, once, if the template writes today's date (`template_dates`).

    Text that spells a control token (`</s>`) is read as that token, as `RewardTrainer`, pipelines and servers read it;
    with `sanitize_control_tokens=True` among the arguments of the chat template it is read as text, in messages.

    Relations: `RewardScorer` and `InteractionDistillationTrainer` both use it; TRL's `RewardTrainer` yields the same
    token ids (held by a test).
    """

    def __init__(self, tokenizer, *, is_date_warned: bool = False):
        self.tokenizer, self._is_date_warned = tokenizer, is_date_warned

    def check(self, prompt: Text | None, completion: Text) -> None:
        """Raise `ValueError` for what is neither text nor messages, or for unknown roles."""
        template = getattr(self.tokenizer, "chat_template", None)
        template = "".join(template.values()) if isinstance(template, dict) else template
        if prompt is not None:
            check_text(prompt, "The prompt", template=template)
        check_text(completion, "The completion", template=template)
        if not prompt:
            check_response(completion, "The completion")

    def render(self, prompt: Text | None, completion: Text, **chat_template_kwargs) -> RenderedText:
        """The full text with the span of every content; `prompt=None` if `completion` holds the whole exchange."""
        self.check(prompt, completion)
        if isinstance(completion, str):
            return self._render_text(_text_before(prompt), completion)
        return self._render_messages(_conversation(prompt, completion), chat_template_kwargs)

    def encode(self, prompt: Text | None, completion: Text, **chat_template_kwargs) -> list[int]:
        """Token ids of the full text, shape `(tokens,)`.

        Raises:
            ValueError: what `check` refuses; half a surrogate pair, which is not text.
        """
        self.check(prompt, completion)
        try:
            return self._encode(prompt, completion, chat_template_kwargs)
        except (TypeError, UnicodeEncodeError):
            _refuse_half_characters(prompt, completion)
            raise

    def _encode(self, prompt: Text | None, completion: Text, chat_template_kwargs: dict[str, Any]) -> list[int]:
        if isinstance(completion, str):
            text = self._render_text(_text_before(prompt), completion).text
            return self.tokenizer(text, verbose=False)["input_ids"]
        messages = _conversation(prompt, completion)
        self._warn_of_date(messages, chat_template_kwargs)
        if chat_template_kwargs.get(SANITIZE):
            return self._sanitized_ids(messages, chat_template_kwargs)
        return self._tokenize_messages(self._apply(messages, chat_template_kwargs))

    def encode_with_offsets(self, rendered: RenderedText, is_conversation: bool) -> tuple[list[int], list]:
        """Token ids and `(start, end)` character offsets of each token; needs a fast tokenizer."""
        if rendered.pieces is not None and rendered.ids is not None:
            ids, offsets = encode_pieces(self.tokenizer, list(rendered.pieces))
            if ids != list(rendered.ids):
                raise ValueError(
                    f"With `{SANITIZE}` this tokenizer ({type(self.tokenizer).__name__}) reads the text beginning "
                    f"{rendered.text[:60]!r} in a way whose character offsets are not known. Leave it out of "
                    "`chat_template_kwargs`, or take such rows out."
                )
            return ids, offsets
        encoded = self.tokenizer(
            rendered.text,
            add_special_tokens=not is_conversation,
            return_offsets_mapping=True,
            verbose=False,
        )
        return encoded["input_ids"], encoded["offset_mapping"]

    def spells_control_token(self, messages: Messages) -> bool:
        """Whether the text of a message spells a control token, which will be read as one."""
        pattern = control_pattern(self.tokenizer, getattr(self.tokenizer, "chat_template", None) or "")
        return pattern is not None and any(
            pattern.search(text) for message in messages for text in message_texts(message)
        )

    def _sanitized_ids(self, messages: Messages, chat_template_kwargs: dict[str, Any]) -> list[int]:
        require_sanitizing(self.tokenizer)
        self._require_template()
        return self.tokenizer.apply_chat_template(messages, return_dict=True, **chat_template_kwargs)["input_ids"]

    def _tokenize_messages(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _render_text(self, prompt: str, completion: str) -> RenderedText:
        eos = self.tokenizer.eos_token
        if eos is None:
            raise ValueError(
                "The tokenizer has no EOS token (`eos_token=None`), but reward models read plain text as "
                "`prompt + completion + EOS`. Set `tokenizer.eos_token`, or use messages with a chat template."
            )
        text = prompt + completion
        body = len(text) - len(eos) if completion.endswith(eos) else len(text)
        contents = (prompt, text[len(prompt) : body])
        spans = (ContentSpan(0, 0, 0, len(prompt)), ContentSpan(1, 0, len(prompt), len(completion)))
        return RenderedText(text if body < len(text) else text + eos, contents, spans)

    def _require_template(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "The data are messages, but the tokenizer has no chat template (`tokenizer.chat_template` is unset). "
                "Set one with `chat_template_path` in the training config or on the tokenizer, or pass plain text."
            )

    def _warn_of_date(self, messages: Messages, chat_template_kwargs: dict[str, Any]) -> None:
        if not self._is_date_warned:
            return
        self._require_template()
        kwargs = {key: value for key, value in chat_template_kwargs.items() if key != SANITIZE}
        warning = date_warning(self.tokenizer, messages, kwargs)
        if warning is not None:
            self._is_date_warned = False
            logger.warning(warning)

    def _apply(self, messages: Messages, chat_template_kwargs: dict[str, Any]) -> str:
        self._require_template()
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **chat_template_kwargs)
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"The chat template refuses a conversation with the roles {roles}: {error}. Change the messages, or "
                "use another chat template."
            ) from error

    def _render_messages(self, messages: Messages, chat_template_kwargs: dict[str, Any]) -> RenderedText:
        kwargs = {key: value for key, value in chat_template_kwargs.items() if key != SANITIZE}
        pieces = ids = None
        if chat_template_kwargs.get(SANITIZE):
            ids = tuple(self._sanitized_ids(messages, chat_template_kwargs))
            pattern = control_pattern(self.tokenizer, self.tokenizer.get_chat_template(None, kwargs.get("tools")))
            pieces = tuple(marked_pieces(self._apply(marked(messages, pattern), marked(kwargs, pattern))))
        text = self._apply(messages, kwargs) if pieces is None else "".join(pieces)
        contents = tuple(content for message in messages for content in message_texts(message))
        template = self.tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))

        def render(others: Sequence[str]) -> str | None:
            remaining = iter(others)
            try:
                return self._apply([_with_texts(message, remaining) for message in messages], kwargs)
            except ValueError:  # the template needs something that the messages do not have
                return None

        return RenderedText(text, contents, find_contents(text, contents, render, template), pieces, ids)


def _text_before(prompt: Text | None) -> str:
    """The prompt of a completion that is a text."""
    if prompt and not isinstance(prompt, str):
        raise ValueError("The prompt is messages, the completion a text; use text for both or messages for both.")
    return prompt if isinstance(prompt, str) else ""


def _conversation(prompt: Text | None, completion: Messages) -> Messages:
    """Prompt and completion as one list of messages in their normal form."""
    if prompt and isinstance(prompt, str):
        raise ValueError("The prompt is a text, the completion messages; use text for both or messages for both.")
    return normal_text([*([] if prompt is None or isinstance(prompt, str) else prompt), *completion])


def _refuse_half_characters(*values: Text | None) -> None:
    for value in values:
        texts = [text for message in value for text in message_texts(message)] if isinstance(value, list) else [value]
        for text in filter(None, texts):
            half = re.search("[\ud800-\udfff]", text)
            if half:
                raise ValueError(
                    f"A text holds half a character ({half[0]!r} at {half.start()} of {text[:40]!r}), one of a "
                    "surrogate pair, and is not Unicode text. Correct the source, or "
                    "`text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')`."
                )
