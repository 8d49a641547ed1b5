"""Units: every token with content lies in exactly one, whatever the text and the two tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizers import tokenizer_of

from hf_interdistill.interaction.data.pairs import FlatText, Preference, read_preference
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.data.units import NO_UNIT, UnitTable, tokens_to_words, word_spans

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)
WORDS = st.lists(
    st.sampled_from(["hello", "don't", "naïve", "日本語", "ไทย", "🙂🙂", "a\u200bb", "...", "x=1"]), max_size=8
)
ANY = st.one_of(TEXT, WORDS.map(" ".join))


def words_of(text):
    return [text[start:end] for start, end in word_spans(text)]


def test_words_by_hand():
    assert words_of("Don't stop, 日本 now...") == ["Don", "'", "t", "stop", ",", "日", "本", "now", "..."]
    assert words_of("") == [] and words_of(" \n\t") == []


@given(ANY)
def test_words_cover_everything_but_white_space(text):
    spans = word_spans(text)
    covered = np.zeros(len(text), dtype=int)
    for start, end in spans:
        covered[start:end] += 1
    assert [bool(c) for c in covered] == [not character.isspace() for character in text]
    assert (spans[1:, 0] >= spans[:-1, 1]).all()


def test_tokens_to_words_by_hand():
    words = np.array([[0, 5], [6, 8], [8, 9]])
    first, last = tokens_to_words([(0, 3), (3, 5), (5, 8), (5, 9), (9, 9), (5, 6), (0, 0)], words)
    assert first.tolist() == [0, 0, 1, 1, NO_UNIT, NO_UNIT, NO_UNIT]
    assert last.tolist() == [0, 0, 1, 2, NO_UNIT, NO_UNIT, NO_UNIT]


def test_a_token_over_two_words_joins_them():
    table = UnitTable([["a b"], ["c d e"]])
    one = table.add([(0, 1), (2, 3)], [(0, 0, 0, 0, 3)])
    other = table.add([(0, 3), (4, 5)], [(1, 0, 0, 0, 5)])  # one token covers "c d"
    third = table.add([(0, 1), (2, 3), (4, 5)], [(1, 0, 0, 0, 5)])
    assert table.token_units(one).tolist() == [0, 1]
    assert table.token_units(other).tolist() == [2, 3]
    assert table.token_units(third).tolist() == [2, 2, 3]
    assert table.sizes == [2, 2]


def test_a_token_over_two_segments_joins_nothing():
    table = UnitTable([["ab"], ["cd"]])
    first = table.add([(0, 4)], [(0, 0, 0, 0, 2), (1, 0, 0, 2, 2)])
    assert table.token_units(first).tolist() == [0] and table.sizes == [1, 1]


def units_by_brute_force(texts, spans_of_each):
    """Connected groups of words: two words are together if a token of any tokenization overlaps both."""
    words = [(segment, start, end) for segment, text in enumerate(texts) for start, end in word_spans(text)]
    group = list(range(len(words)))
    for segment, spans in spans_of_each:
        for start, end in spans:
            hit = [i for i, (s, a, b) in enumerate(words) if s == segment and a < end and start < b]
            for i in hit:
                old = group[i]
                group = [group[hit[0]] if g == old else g for g in group]
    names = {g: n for n, g in enumerate(dict.fromkeys(group))}
    return words, [names[g] for g in group]


KINDS = [("bytes", "wordpiece"), ("metaspace", "roberta")]
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}


@pytest.mark.parametrize("kinds", KINDS)
@settings(max_examples=60, deadline=None)
@given(prompt=ANY, chosen=ANY, rejected=ANY)
@example(prompt="", chosen="", rejected="")
@example(prompt="</s>[SEP]", chosen="<|user|>", rejected="Q7c000001c7Q")
def test_every_token_with_content_has_the_unit_of_its_words(kinds, prompt, chosen, rejected):
    student, teacher = tokenizer_of(kinds[0]), tokenizer_of(kinds[1])
    row = {"prompt": prompt + " ", "chosen": chosen, "rejected": rejected}
    columns = PreferenceTokenizer(student, teacher)(row, 0)
    texts = [row["prompt"], chosen, rejected]
    eos = student.eos_token
    sides = []
    for segment, text in ((1, chosen), (2, rejected)):
        full = row["prompt"] + text + ("" if text.endswith(eos) else eos)
        sides.append((segment, student(full, return_offsets_mapping=True)["offset_mapping"]))
    pieces = [(i, teacher(t, **AS_TEXT)["offset_mapping"]) for i, t in enumerate(texts)]
    shift = len(row["prompt"])
    bodies = [len(texts[i]) - len(eos) if i and texts[i].endswith(eos) else len(texts[i]) for i in range(3)]
    as_segment = [(0, [(s, min(e, shift)) for s, e in sides[0][1] if s < shift])]
    as_segment += [(i, [(max(s - shift, 0), e - shift) for s, e in spans if e > shift]) for i, spans in sides]
    if any(s < shift < e for _, spans in sides for s, e in spans) or bodies != [len(text) for text in texts]:
        return  # a token across the border, or an EOS typed by the user: covered by hand above
    words, groups = units_by_brute_force(texts, as_segment + pieces)
    assert sum(columns["unit_sizes"]) == len(set(groups))
    for name, segment in (("prompt", 0), ("chosen", 1), ("rejected", 2)):
        for (start, end), unit in zip(pieces[segment][1], columns[f"teacher_{name}_units"], strict=True):
            hit = {g for (s, a, b), g in zip(words, groups, strict=True) if s == segment and a < end and start < b}
            assert hit == ({unit} if unit != NO_UNIT else set())
    for segment, spans in sides:
        units = columns["student_chosen_units" if segment == 1 else "student_rejected_units"]
        for (start, end), unit in zip(spans, units, strict=True):
            inside = segment if start >= shift else 0
            offset = shift if start >= shift else 0
            hit = {
                g
                for (s, a, b), g in zip(words, groups, strict=True)
                if s == inside and a < end - offset and start - offset < b
            }
            if segment == 2 and inside == 0:
                hit = set()  # the prompt's tokens are taken from the chosen row
            assert hit == ({unit} if unit != NO_UNIT else set())


@settings(max_examples=40, deadline=None)
@given(contents=st.lists(ANY, min_size=3, max_size=5))
def test_conversations_of_any_text(contents):
    roles = ["user", "assistant", "user", "assistant", "user"]
    prompt = [{"role": role, "content": text} for role, text in zip(roles, contents[:-2], strict=False)]
    row = {
        "prompt": prompt,
        **{
            key: [{"role": "assistant", "content": text}]
            for key, text in zip(("chosen", "rejected"), contents[-2:], strict=True)
        },
    }
    student = tokenizer_of("bytes")
    columns = PreferenceTokenizer(student, tokenizer_of("wordpiece"))(row, 0)
    rendered = student.apply_chat_template(prompt + row["chosen"], tokenize=False)
    offsets = student(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    covered = "".join(
        rendered[start:end]
        for (start, end), unit in zip(offsets, columns["student_chosen_units"], strict=True)
        if unit != NO_UNIT
    )
    for text in [*contents[:-2], contents[-2]]:
        for start, end in word_spans(text):
            assert text[start:end][0] in covered


def test_templates_that_strip_repeat_or_drop_contents():
    student, teacher = tokenizer_of("bytes"), tokenizer_of("wordpiece")
    row = {
        "prompt": [{"role": "user", "content": "  user asks\n"}, {"role": "system", "content": "drop me"}],
        "chosen": [{"role": "assistant", "content": "user"}],
        "rejected": [{"role": "assistant", "content": " assistant "}],
    }
    student.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|> {{ m.content | trim }}\n{% endfor %}"
    )
    columns = PreferenceTokenizer(student, teacher)(row, 0)
    for key, segment in (("chosen", "student_chosen_units"), ("rejected", "student_rejected_units")):
        text = student.apply_chat_template(row["prompt"] + row[key], tokenize=False)
        offsets = student(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        of_unit = {}
        for (start, end), unit in zip(offsets, columns[segment], strict=True):
            of_unit[unit] = of_unit.get(unit, "") + text[start:end]
        response = {unit: piece.strip() for unit, piece in of_unit.items() if unit >= sum(columns["unit_sizes"][:1])}
        assert list(response.values()) == [key.replace("chosen", "user").replace("rejected", "assistant")] or (
            "".join(response.values()) == row[key][0]["content"].strip()
        )
    # the system message that the template drops: the teacher gets it, the student does not
    assert columns["shared_units"] == sum(columns["unit_sizes"]) - 2


def test_implicit_prompts_are_split_between_words_and_messages():
    text = read_preference({"chosen": "Is it harmful? No harm", "rejected": "Is it harmful? No harms"})
    assert text == Preference("Is it harmful? No ", "harm", "harms")
    user, same = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    assert read_preference({"chosen": [user, same], "rejected": [user, same]}) == Preference([user], [same], [same])
    other = {"role": "assistant", "content": "no"}
    assert read_preference({"chosen": [user, same], "rejected": [user, other]}).prompt == [user]


def test_structured_contents_and_tool_calls():
    row = {
        "prompt": [
            {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "text", "text": "this"}]}
        ],
        "chosen": [
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": "a cat"},
        ],
        "rejected": [{"role": "assistant", "content": "a dog"}],
    }
    student = tokenizer_of("bytes")
    student.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% elif m.content %}"
        "{% for p in m.content %}{{ p.text }} {% endfor %}{% endif %};{% endfor %}"
    )
    columns = PreferenceTokenizer(student, tokenizer_of("wordpiece"))(row, 0)
    assert columns["unit_sizes"] == [3, 2, 2] and columns["shared_units"] == 7


def test_flat_texts_by_hand():
    prompt = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    expected = FlatText("user: hi\nassistant: yes?", ("hi", "yes?"), (6, 20))
    assert FlatText.flatten(prompt, is_prompt=True) == FlatText.flatten(prompt, is_prompt=False) == expected
    assert FlatText.flatten(prompt[1:], is_prompt=False) == FlatText("yes?", ("yes?",), (0,))
    assert FlatText.flatten(prompt[1:], is_prompt=True) == FlatText("assistant: yes?", ("yes?",), (11,))
    assert FlatText.flatten("plain", is_prompt=True) == FlatText("plain", ("plain",), (0,))
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    tool = [{"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    assert FlatText.flatten(tool, is_prompt=True) == FlatText("assistant: \nuser: a b", ("a", "b"), (18, 20))


def test_keys_tell_pairs_apart_and_stay():
    one = Preference("a", "b", "c")
    assert one.key == Preference("a", "b", "c").key != Preference("a", "c", "b").key
    assert one.key == 1787171736
