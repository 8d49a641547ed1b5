"""Where the contents of messages are in the text that a chat template rendered from them.

Templates strip contents, keep what follows `</think>`, rewrite thoughts in their own markup, move or drop
messages. The same conversation is therefore rendered once more, with marks in the contents, and the marks show where
each part went. A mark counts only if text and marked text agree everywhere else, so a repeated word or an answer that
repeats the prompt cannot be taken for another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jinja2

Render = Callable[[Sequence[str]], str | None]


class ContentSpan(NamedTuple):
    """A run of characters of a content that appears in the rendered text.

    Args:
        content: number of the content, over all messages.
        offset: where the run begins in the content.
        start: where it begins in the rendered text.
        size: characters of it.
    """

    content: int
    offset: int
    start: int
    size: int


def find_contents(text: str, contents: Sequence[str], render: Render, template: str) -> tuple[ContentSpan, ...]:
    """Spans of the contents in the rendered text, by their place in the text, without overlaps.

    Args:
        text: the rendered conversation.
        contents: its contents.
        render: renders the conversation with other contents; `None` where the template refuses them.
        template: source of the chat template.
    """
    skeleton = render([_sentinel(number) for number in range(len(contents))])
    spans = None if skeleton is None else _between(text, contents, skeleton)
    for constants in _constants_to_keep(template, contents) if spans is None else ():
        spans = _trace(text, contents, render, constants)
        if spans is not None:
            break
    if spans is None:
        spans = _unique_words(text, contents, f"{template}\n{skeleton or ''}")
    return tuple(spans)


# Contents that appear whole, or stripped ---------------------------------------------------------------------------


def _sentinel(number: int) -> str:
    # Letters and digits only: a template that strips, splits on tags or escapes leaves it as it is.
    return f"Q7c{number:06d}c7Q"


def _between(text: str, contents: Sequence[str], skeleton: str) -> list[ContentSpan] | None:
    """The spans, if the text is that of the skeleton with every sentinel replaced by its content; `None` otherwise."""
    parts = re.split(r"Q7c(\d{6})c7Q", skeleton)
    literals = parts[::2]
    if parts[1::2] != [f"{number:06d}" for number in range(len(contents))] or not text.startswith(literals[0]):
        return None
    spans, cursor = [], len(literals[0])
    for number, (content, following) in enumerate(zip(contents, literals[1:], strict=True)):
        for kept in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(kept, cursor) and text.startswith(following, cursor + len(kept)):
                break
        else:
            return None
        spans.append(ContentSpan(number, content.find(kept), cursor, len(kept)))
        cursor += len(kept) + len(following)
    return spans if cursor == len(text) else None


# Contents that a template takes apart -----------------------------------------------------------------------------

# A word is what templates treat as a whole: no white space, no ASCII punctuation, no control character.
_CHARACTER = r"[^\s\x00-/:-@\[-^`{-\x7f]"
# Letters without upper and lower case that can be printed, so that no filter of a template changes them.
_RANGES = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x20000, 0x2FA20), (0x30000, 0x32000))
_MARK = re.compile(r"([\u3400-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff])\1*")


@lru_cache(maxsize=1)
def _marks() -> str:
    letters = (chr(number) for first, end in _RANGES for number in range(first, end))
    return "".join(letter for letter in letters if letter.isalpha() and letter.isprintable())


@lru_cache(maxsize=32)
def _constants(template: str) -> tuple[str, ...]:
    """The strings that a template compares contents with or splits them at."""
    strings = {value[1:-1] for _, kind, value in jinja2.Environment().lex(template) if kind == "string"}
    return tuple(sorted(s.encode("ascii", "backslashreplace").decode("unicode-escape") for s in strings))


def _constants_to_keep(template: str, contents: Sequence[str]) -> list[tuple[str, ...]]:
    """What to leave unmarked in the contents: first tags alone, since a word such as `user` is usually just a word;
    then every string of the template."""
    together = "\0".join(contents)
    every = tuple(each for each in _constants(template) if each in together and re.search(_CHARACTER, each))
    tags = tuple(each for each in every if not re.fullmatch(rf"\s*{_CHARACTER}+\s*", each))
    return [tags] if tags == every else [tags, every]


def _trace(text: str, contents: Sequence[str], render: Render, constants: Sequence[str]) -> list[ContentSpan] | None:
    """The spans, by a rendering in which each word is replaced by as many copies of a letter of its own.

    Lengths, white space, punctuation and `constants` stay, so the template does the same to it. `None` if the result
    is not the text with marks for words: then the template looked at the words themselves.
    """
    taken = set(text).union(*contents)
    marks = iter(mark for mark in _marks() if mark not in taken)
    origins: dict[str, tuple[int, int, str]] = {}
    marked = [_marked(number, content, constants, marks, origins) for number, content in enumerate(contents)]
    rendered = render(marked)
    if rendered is None:
        return None
    spans: list[ContentSpan] = []
    cursor = position = probe = 0
    while match := _MARK.search(rendered, probe):
        probe = match.end()
        if match[1] not in origins:
            continue
        between, start = rendered[cursor : match.start()], match.start()
        if not text.startswith(between, position):
            return None
        position += len(between)
        number, offset, word = origins[match[1]]
        size = _common_length(rendered, start, marked[number], offset)
        if size >= len(word) and text.startswith(contents[number][offset : offset + size], position):
            cursor = probe = start + size
            found = (offset, size)
        else:  # one word, changed or cut
            read = _read(word, probe - start, text, position)
            if read is None:
                return None
            cursor, (place, size, is_found) = probe, read
            found = (offset + place, size if is_found else 0)
        if found[1]:
            spans.append(ContentSpan(number, found[0], position, _marked_size(contents, marked, number, *found)))
        position += size
    return _grown(text, contents, marked, spans) if text[position:] == rendered[cursor:] else None


def _common_length(one: str, start: int, other: str, offset: int) -> int:
    """Number of characters that the two have in common from there."""
    length, step, limit = 0, 64, min(len(one) - start, len(other) - offset)
    while step and length < limit:
        end = min(length + step, limit)
        if one[start + length : start + end] == other[offset + length : offset + end]:
            length, step = end, 2 * step
        else:
            step //= 2
    return length


def _marked_size(contents: Sequence[str], marked: Sequence[str], number: int, offset: int, size: int) -> int:
    """The size of a run without what bears no mark at its end."""
    while contents[number][offset + size - 1] == marked[number][offset + size - 1]:
        size -= 1
    return size


def _marked(number: int, content: str, constants: Sequence[str], marks, origins: dict) -> str:
    """The content with a mark for each word; of a content without words, for all of it."""
    kept = "|".join(map(re.escape, sorted(constants, key=len, reverse=True)))
    word = rf"(?:(?!{kept}){_CHARACTER})+" if kept else rf"{_CHARACTER}+"
    if not re.search(_CHARACTER, content):
        word = r"\S+"

    def mark(match: re.Match) -> str:
        letter = None if match["word"] is None else next(marks, None)
        if letter is None:  # a constant; or there are more words than letters
            return match[0]
        origins[letter] = (number, match.start(), match[0])
        return letter * len(match[0])

    return re.sub(rf"{kept}|(?P<word>{word})" if kept else rf"(?P<word>{word})", mark, content, flags=re.DOTALL)


def _read(word: str, length: int, text: str, start: int) -> tuple[int, int, bool] | None:
    """How a word of which `length` characters were rendered stands in the text at `start`.

    Returns:
        where the rendered part begins in the word, its characters in the text, and whether both are known, character
        by character; `None` if the text has something else there.
    """
    if length == len(word):
        for form in (word, word.upper(), word.lower(), word.capitalize(), ascii(word)[1:-1]):
            if text.startswith(form, start):
                return 0, len(form), len(form) == length
        return None
    part = text[start : start + length]
    places = [place for place in range(len(word) - length + 1) if word.startswith(part, place)]
    return (places[0], length, len(places) == 1) if places else None


def _unique_words(text: str, contents: Sequence[str], foreign: str) -> list[ContentSpan]:
    """The spans of words that occur once in the contents, once in the text, and that the template does not write
    itself, with what stands around them."""
    word = re.compile(rf"{_CHARACTER}+")
    places = [(match[0], number, match.start()) for number, one in enumerate(contents) for match in word.finditer(one)]
    counts = Counter(found for found, _, _ in places)
    starts = {match[0]: match.start() for match in word.finditer(text)}
    in_text, others = Counter(word.findall(text)), set(word.findall(foreign))
    spans = [
        ContentSpan(number, offset, starts[found], len(found))
        for found, number, offset in places
        if counts[found] == in_text[found] == 1 and found not in others
    ]
    return _grown(text, contents, contents, sorted(spans, key=lambda span: span.start))


def _grown(
    text: str, contents: Sequence[str], marked: Sequence[str], spans: Sequence[ContentSpan]
) -> list[ContentSpan]:
    """The spans with what stands on both sides of them in the text as in the content, as far as it bears no mark.
    Of characters without white space between them all are taken or none. Spans that meet become one."""
    grown: list[ContentSpan] = []
    for index, (number, offset, start, size) in enumerate(spans):
        content, free = contents[number], marked[number]
        last = grown[-1] if grown else ContentSpan(-1, 0, 0, 0)
        floor = last.start + last.size
        ceiling = spans[index + 1].start if index + 1 < len(spans) else len(text)
        first, own_end = offset, offset + size
        end, stop = own_end, start + size
        while start > floor and offset > 0 and free[offset - 1] == content[offset - 1] == text[start - 1]:
            offset, start = offset - 1, start - 1
        while offset < first and _is_tied(content, free, offset):
            offset, start = offset + 1, start + 1
        while stop < ceiling and end < len(content) and free[end] == content[end] == text[stop]:
            end, stop = end + 1, stop + 1
        while end > own_end and _is_tied(content, free, end):
            end, stop = end - 1, stop - 1
        if last.content == number and last.offset + last.size == offset and floor == start:
            grown.pop()
            offset, start = last.offset, last.start
        grown.append(ContentSpan(number, offset, start, end - offset))
    return grown


def _is_tied(content: str, free: str, place: int) -> bool:
    """Whether the characters before and at `place` are unmarked, with no white space between them."""
    if not 0 < place < len(content):
        return False
    return all(free[each] == content[each] and not content[each].isspace() for each in (place - 1, place))
