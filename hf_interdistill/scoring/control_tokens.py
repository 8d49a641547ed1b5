"""Text that spells a control token: found, read as text, or broken up.

A tokenizer reads `</s>` or `<|im_end|>` in a user's text as the token of that name, as transformers, TRL and servers
do. Where ids must be those of others (`RewardFormatter`), such text is found and counted, and read as text where the
caller asks for it by transformers' own switch; where the ids are ours alone (teacher, judge), it is never a token.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import transformers

try:  # private, but the same text must be left when they are taken out
    from transformers.utils.chat_template_utils import _CONTROL_TOKEN_END, _CONTROL_TOKEN_START
except ImportError:  # a version without the switch, which `require_sanitizing` refuses
    _CONTROL_TOKEN_START, _CONTROL_TOKEN_END = "\ue000", "\ue001"

SANITIZE = "sanitize_control_tokens"
# For private use; taken out of user text first, so that a text cannot bring its own.
_START, _END = _CONTROL_TOKEN_START, _CONTROL_TOKEN_END


def control_pattern(tokenizer, template: str = "") -> re.Pattern | None:
    """What matches the control tokens of a tokenizer in a text, longest first; `None` if it has none.

    Args:
        tokenizer: its special tokens count; none do if it was told to split them (`split_special_tokens`).
        template: its chat template: the other added tokens that it writes count too, but white space.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return None
    found = [
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.content and (token.special or (token.content in template and not token.content.isspace()))
    ]
    found.sort(key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def break_up(text: str, pattern: re.Pattern | None) -> str:
    """The text with a space in every control token, so that it is read as text (`</s>` becomes `< /s>`).

    A control token of one character is left out.
    """
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else "", text)
    return text


def marked(value: Any, pattern: re.Pattern | None) -> Any:
    """Messages, tools or template arguments with markers around every control token in them (keys left alone)."""
    if isinstance(value, str):
        value = value.replace(_START, "").replace(_END, "")
        return value if pattern is None else pattern.sub(f"{_START}\\g<0>{_END}", value)
    if isinstance(value, dict):
        return {key: marked(entry, pattern) for key, entry in value.items()}
    return [marked(entry, pattern) for entry in value] if isinstance(value, list | tuple) else value


def marked_pieces(text: str) -> list[str]:
    """A marked text in pieces: plain, control token, plain, ..., plain."""
    return re.split(f"{_START}([^{_START}{_END}]*){_END}", text)


def require_sanitizing(tokenizer) -> None:
    """Raise `ValueError` if this version of transformers does not know the switch and would silently ignore it."""
    if SANITIZE not in inspect.signature(tokenizer.apply_chat_template).parameters:
        raise ValueError(
            f"`{SANITIZE}` is set, but transformers {transformers.__version__} does not know it and would ignore it. "
            "Upgrade transformers, or leave it out of `chat_template_kwargs`."
        )


def encode_pieces(tokenizer, pieces: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and character offsets of the pieces of `marked_pieces`, whose control tokens are read as text.

    Every token of such a control token has the span of the whole of it. Pieces after the first are tokenized after a
    newline that is then removed, since some tokenizers put a space before a text.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ids, offsets, position = [], [], 0
    for number, piece in enumerate(pieces):
        if number % 2:
            encode = tokenizer._encode_without_added_tokens
            own = encode("\n" + piece)
            own = own[len(newline) :] if own[: len(newline)] == newline else encode(piece)
            spans = [(position, position + len(piece))] * len(own)
        else:
            own, spans = _encode_plain(tokenizer, piece, position, newline if number else [])
        ids += own
        offsets += spans
        position += len(piece)
    return ids, offsets


def _encode_plain(tokenizer, piece: str, position: int, newline: list[int]) -> tuple[list[int], list]:
    def encode(text: str, shift: int):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = [
            (max(start - shift, 0) + position, end - shift + position) for start, end in encoded["offset_mapping"]
        ]
        return encoded["input_ids"], spans

    if not piece or not newline:
        return encode(piece, 0)
    ids, spans = encode("\n" + piece, 1)
    return (ids[len(newline) :], spans[len(newline) :]) if ids[: len(newline)] == newline else encode(piece, 0)
