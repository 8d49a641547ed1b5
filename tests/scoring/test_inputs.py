"""What the scorer is given: every form that means rows is scored, everything else is explained."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer

USER, ASSISTANT = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}
SHAREGPT = [{"from": "human", "value": "How?"}]


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer(build_student(), tokenizer_of("bytes"))


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        (SHAREGPT, [{"from": "gpt", "value": "So."}], r"ShareGPT's format.*maybe_convert_to_chatml.*`user`"),
        ([USER], [{"content": "So."}], r"Message 0 of the completion .* `role` must be a text"),
        ([USER], [{"role": "", "content": "So."}], "`role` must be a text"),
        ([USER], [{"role": "gpt", "content": "So."}], r"unknown role 'gpt'.* Rename it to 'assistant'"),
        ([USER], [{"role": "critic", "content": "So."}], r"unknown role 'critic'; known are system"),
        ([USER], [], "empty conversation"),
        (None, [], "empty conversation"),
        ([USER], [{"role": "assistant"}], "without `content`"),
        ([USER], [{"role": "assistant", "content": None, "tool_calls": None}], "without `content`"),
        ([USER], [{"role": "assistant", "content": 3}], r"the `content` 3, but .*`str\(...\)`"),
        ([USER], [{"role": "assistant", "content": float("nan")}], "NaN marks an empty cell"),
        ([USER], [{"role": "assistant", "content": ["So."]}], r"the part 'So.', but a part is like"),
        ([USER], [{"role": "assistant", "content": [{"type": "text"}]}], "a part is like"),
        ([USER], [{"role": "assistant", "content": [{"type": "image"}]}], r"part of type 'image', but .*text alone"),
        ("How?", None, r"holds None, but must be a text .*missing \(null\)"),
        ("How?", float("nan"), "NaN marks an empty cell"),
        ("How?", np.float32("nan"), "NaN marks an empty cell"),
        ("How?", 3.5, r"holds 3.5, .*`str\(...\)`"),
        (True, "So.", "The prompt holds True"),
        ("How?", b"So.", "Decode it"),
        ("How?", ["So.", "Or so."], "list of texts: give each its own row"),
        (None, [[USER, ASSISTANT]], "list of conversations: give each its own row"),
        (USER, ASSISTANT, "one message: put it in a list"),
        ("How?", [ASSISTANT], "text for both or messages for both"),
    ],
)
def test_rows_that_are_neither_texts_nor_messages(scorer, prompt, completion, message):
    with pytest.raises(ValueError, match=rf"^Row 1: .*{message}"):
        scorer(["How?", prompt], ["So.", completion])


@pytest.mark.parametrize(
    ("prompts", "completions", "error", "message"),
    [
        ("How?", "So.", TypeError, r"`prompts` is 'How\?' \(str\), .* `\[prompt\]`"),
        (["How?"], "So.", TypeError, r"`completions` is 'So.' \(str\)"),
        (None, ["So."], TypeError, r"`prompts` is None .*entries may be `None`"),
        ([None], 3, TypeError, r"`completions` is 3 \(int\)"),
        ({"a": "How?"}, ["So."], TypeError, r"\(dict\), but must be a list with one entry per row"),
        ({"How?"}, ["So."], TypeError, r"\(set\)"),
        ([USER], [ASSISTANT], ValueError, "one message: put it in a list"),  # one bare conversation
        ([USER, ASSISTANT], ["So."], ValueError, "2 prompts and 1 completions"),
    ],
)
def test_what_is_no_list_of_rows(scorer, prompts, completions, error, message):
    with pytest.raises(error, match=message):
        scorer(prompts, completions)


@pytest.mark.parametrize("form", [tuple, iter, np.array, lambda rows: (row for row in rows), "column"])
def test_any_collection_of_rows(scorer, form):
    prompts, completions = ["How? ", "Why? "], ["So.", "Because."]
    expected = [scorer([prompt], [completion])[0] for prompt, completion in zip(prompts, completions, strict=True)]
    if form == "column":
        data = Dataset.from_dict({"prompts": prompts, "completions": completions})
        given = data["prompts"], data["completions"]
    else:
        given = form(prompts), form(completions)
    assert scorer(*given) == pytest.approx(expected, abs=1e-6)


def test_columns_for_the_template_have_a_row_each(scorer):
    rows = [[USER]] * 2, [[ASSISTANT]] * 2
    with pytest.raises(ValueError, match="2 completions and 1 `tools`"):
        scorer(*rows, tools=["[]"])
    with pytest.raises(TypeError, match=r"`chat_template_kwargs` is .*dict"):
        scorer(*rows, chat_template_kwargs={"mark": "x"})
    assert scorer(*rows, tools=[None, "[]"]) == pytest.approx(scorer(*rows), abs=1e-6)


def test_roles_of_the_template_are_known(scorer):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% if messages[0]['role'] == 'critic' %}!{% endif %}" + tokenizer.chat_template
    other = RewardScorer(build_student(), tokenizer)
    text = "!<|critic|>\nSo.<|end|>\n"
    expected = other.score_ids([tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert other([None], [[{"role": "critic", "content": "So."}]]) == pytest.approx(expected, abs=1e-6)
    tokenizer.chat_template = "{{ raise_exception('Only one message, please.') }}"
    with pytest.raises(ValueError, match=r"Row 0: The chat template refuses .*\['user'\]: Only one message, please"):
        other([None], [[USER]])


@pytest.mark.parametrize("size", [-1, 0, 2.5, "8", None, True])
def test_batch_sizes(size):
    with pytest.raises(ValueError, match=r"`batch_size` is .*whole number of at least 1"):
        RewardScorer(build_student(), tokenizer_of("bytes"), batch_size=size)
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    scorer.batch_size = size
    with pytest.raises(ValueError, match="`batch_size` is"):
        scorer(["How?"], ["So."])


@pytest.mark.parametrize("length", [0, -3, 1.5])
def test_lengths(length):
    with pytest.raises(ValueError, match="`max_length` is"):
        RewardScorer(build_student(), tokenizer_of("bytes"), max_length=length)


@pytest.mark.parametrize(("family", "is_table"), [("gpt2", True), ("llama", False), ("bloom", None)])
def test_texts_beyond_the_positions(family, is_table, caplog):
    """A table of positions cannot be read further; rotary positions can, with a warning; ALiBi has no limit."""
    shape = {"gpt2": {"n_positions": 32}, "llama": {"max_position_embeddings": 32}}.get(family, {})
    scorer = RewardScorer(build_student(family, "eager", **shape), tokenizer_of("bytes"))
    fits, long = [5] * 32, [5] * 33
    with caplog.at_level(logging.WARNING):
        scorer.score_ids([fits])
    assert not caplog.text
    if is_table:
        with pytest.raises(ValueError, match="A text has 33 tokens, more than the 32 positions of GPT2"):
            scorer.score_ids([fits, long])
        return
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        expected = scorer.model(torch.tensor([long])).logits[0, 0].item()
        assert scorer.score_ids([long]) == scorer.score_ids([long]) == pytest.approx([expected], abs=1e-5)
    assert caplog.text.count("more than the 32 positions of Llama") == (0 if is_table is None else 1)
