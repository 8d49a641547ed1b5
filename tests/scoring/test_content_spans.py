"""Where contents stand in what a chat template made of them, character by character against models of templates."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.chat_templates import QWEN3, TEMPLATES, content, plain
from support.tokenizers import tokenizer_of

from hf_interdistill.scoring.formatting import RewardFormatter

# Few words, so that they are repeated, and those that templates write or look for.
WORDS = ["yes", "no", "user", "assistant", "think", "日本語", "Ünïcode", "?", "a.b", "\n"]
WORDS += ["<think>", "</think>", "### Answer:"]
MARKUP = re.compile("</?think>|### Answer:")
CONTENT = st.lists(st.sampled_from(WORDS), max_size=8).flatmap(
    lambda words: st.sampled_from([" ", "\n", ""]).map(lambda between: between.join(words))
)
ROLES = [["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant", "user", "assistant"]]


def formatter_with(template: str) -> RewardFormatter:
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    return RewardFormatter(tokenizer)


def origins(rendered) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = [None] * len(rendered.text)
    for number, offset, start, size in rendered.spans:
        for place in range(size):
            assert found[start + place] is None
            found[start + place] = (number, offset + place)
    return found


def markup_places(text: str) -> set[int]:
    return {place for match in MARKUP.finditer(text) for place in range(*match.span())}


def messages_of(roles, contents):
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_character_is_found_where_the_template_put_it(name, data):
    template, model = TEMPLATES[name]
    roles = data.draw(st.sampled_from(ROLES))
    contents = [data.draw(CONTENT) for _ in roles]
    expected = model(roles, [content(number, text) for number, text in enumerate(contents)])
    messages = messages_of(roles, contents)
    rendered = formatter_with(template).render(messages[:-1], messages[-1:])
    assert rendered.text == plain(expected)
    in_text = markup_places(rendered.text)
    in_contents = [markup_places(text) for text in contents]
    for place, (found, (character, origin)) in enumerate(zip(origins(rendered), expected, strict=True)):
        is_word = re.match(r"\w", character) is not None
        if origin is not None and is_word and origin[1] not in in_contents[origin[0]]:
            assert found == origin, (rendered.text, place, found)
        elif origin is not None and found is not None:
            assert found == origin or not is_word, (rendered.text, place, found)
        elif found is not None:  # the template's own, beside the same of a content
            assert contents[found[0]][found[1]] == character and (place in in_text or not is_word)


def test_tags_that_stand_among_words_are_found_with_them():
    messages = messages_of(["user", "assistant"], ["what is </think> for", "<think>ends a thought</think>a tag"])
    rendered = formatter_with(QWEN3).render(messages[:1], messages[1:])
    assert [rendered.text[span.start : span.start + span.size] for span in rendered.spans] == [
        *("what is </think> for", "ends a thought", "a tag")
    ]


def test_an_answer_that_repeats_the_prompt_is_found_twice():
    messages = messages_of(["user", "assistant"], ["say yes", "<think>say yes</think>say yes"])
    rendered = formatter_with(QWEN3).render(messages[:1], messages[1:])
    words = [(span.content, span.offset) for span in rendered.spans]
    assert rendered.text.count("say yes") == 3 and words == [(0, 0), (1, 7), (1, 22)]
    assert [rendered.text[span.start : span.start + span.size] for span in rendered.spans] == ["say yes"] * 3


def test_what_a_template_drops_is_not_found_in_its_own_words():
    template = (
        "{% for m in messages %}{{ m.role }} says {% if m.role == 'user' %}{{ m.content }}{% endif %};{% endfor %}"
    )
    messages = messages_of(["user", "assistant"], ["hello", "assistant says"])
    rendered = formatter_with(template).render(messages[:1], messages[1:])
    assert rendered.text == "user says hello;assistant says ;"
    assert [span.content for span in rendered.spans] == [0]


def test_a_content_written_twice_is_found_twice():
    template = "{{ messages[0].content }}\n{% for m in messages %}{{ m.content }};{% endfor %}"
    messages = messages_of(["user", "assistant"], ["one two", "two"])
    rendered = formatter_with(template).render(messages[:1], messages[1:])
    assert rendered.spans == ((0, 0, 0, 7), (0, 0, 8, 7), (1, 0, 16, 3))


def test_parts_of_contents():
    template = (
        "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'text' %}"
        "{{ part.text.split('</think>')[-1] | trim }}{% endif %}{% endfor %};{% endfor %}"
    )
    parts = [
        {"type": "text", "text": " text "},
        {"type": "text", "text": "<think>no</think> yes"},
    ]
    rendered = formatter_with(template).render([], [{"role": "user", "content": parts}])
    assert rendered.text == "user:textyes;"
    assert rendered.spans == ((0, 1, 5, 4), (1, 18, 9, 3))


def test_a_list_that_a_template_prints_as_python():
    parts = [{"type": "text", "text": "it's\nÜber 日本"}]
    rendered = formatter_with("{{ messages[0].content }}").render([], [{"role": "user", "content": parts}])
    found = {place: rendered.text[start : start + size] for _, place, start, size in rendered.spans}
    assert found == {0: "it's", 5: "Über 日本"}


def test_a_template_that_looks_at_the_words_themselves():
    """Marked contents take another way through it: words that are there once, and their neighbours, remain."""
    template = (
        "{% set first = messages[0].content %}{% for m in messages %}<{{ m.role }}>"
        "{% if m.content.startswith(first) %}{{ m.content[first | length:] | trim }}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    messages = messages_of(["user", "assistant"], ["name a colour", "name a colour : a deep blue, user"])
    rendered = formatter_with(template).render(messages[:1], messages[1:])
    assert rendered.text == "<user><assistant>: a deep blue, user"
    assert rendered.spans == ((1, 14, 17, 19),)


def test_a_template_that_refuses_marked_contents():
    template = (
        "{% for m in messages %}{% if not m.content.startswith('Q: ') %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rendered = formatter_with(template).render([], [{"role": "user", "content": "Q: why"}])
    assert rendered.spans == ((0, 0, 0, 6),)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])), min_size=2, max_size=4))
@example(["Q7c000001c7Q", "Q7c000000c7Q"])
def test_any_text_that_is_kept_whole_is_found_whole(contents):
    messages = messages_of(["user"] * len(contents), contents)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    rendered = formatter_with(template).render(messages[:1], messages[1:])
    starts = [(len("<|user|>") * (i + 1) + sum(map(len, contents[:i]))) for i in range(len(contents))]
    expected = [(i, 0, start, len(text)) for i, (start, text) in enumerate(zip(starts, contents, strict=True))]
    assert list(rendered.spans) == expected
