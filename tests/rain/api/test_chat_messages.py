"""Messages are recovered from rendered prompts, or not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.api.chat_messages import has_chat_markup, recover_messages
from hf_interdistill.rain.api.inputs import prompts_for_scorers

TEMPLATES = {
    "chatml": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "Be kind.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "<s>{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    "gemma": "<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}"
    "</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
    "instruct": "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|h|>", "<|/h|>", "<|eot|>", "<turn>", "</turn>"]


def tokenizer_with(name):
    tokenizer = tokenizer_of("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def conversation(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [*([{"role": "system", "content": system}] if system else []), *messages]


def ids_of(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_recovered(name):
    tokenizer = tokenizer_with(name)
    conversations = [conversation("How are you?"), conversation("Hi", "Hello.\n\nWhat now?", "Bake\nbread: how?")]
    if name in ("chatml", "llama3"):
        conversations.append(conversation("Hi", "Yes?", "Why", system="Answer in rhyme."))
    for messages in conversations:
        assert recover_messages(tokenizer, ids_of(tokenizer, messages)) == messages


@given(
    st.lists(st.text("ab <|>/\n:.é🙂[INST]", max_size=12), min_size=1, max_size=3), st.sampled_from(list(TEMPLATES))
)
@settings(max_examples=60, deadline=None)
def test_what_is_recovered_renders_to_the_same_tokens(contents, name):
    tokenizer = tokenizer_with(name)
    contents = contents if len(contents) % 2 else contents[:-1]
    ids = ids_of(tokenizer, conversation(*contents))
    found = recover_messages(tokenizer, ids)
    assert found is None or ids_of(tokenizer, found) == ids


def test_other_prompts_are_not_taken_for_conversations():
    tokenizer = tokenizer_with("chatml")
    ids = ids_of(tokenizer, conversation("Hi"))
    cut = [
        ids[3:],
        ids[:-2],
        [*ids, *tokenizer("Sure, ")["input_ids"]],
        tokenizer("Human: Hi\nAssistant:")["input_ids"],
    ]
    assert [recover_messages(tokenizer, each) for each in cut] == [None] * 4
    assert [has_chat_markup(tokenizer, each) for each in cut] == [True, True, True, False]
    tokenizer.chat_template = None
    assert recover_messages(tokenizer, ids) is None and not has_chat_markup(tokenizer, ids)


def test_scorers_see_messages_where_they_are_proved_else_text_with_a_warning(caplog):
    tokenizer = tokenizer_with("llama3")
    rows = [ids_of(tokenizer, conversation("Hi")), tokenizer("Tell me")["input_ids"]]
    assert prompts_for_scorers(tokenizer, rows, None, 1) == [conversation("Hi"), "Tell me"]
    assert not caplog.records
    odd = [*rows[0], *tokenizer("Sure")["input_ids"]]
    (text,) = prompts_for_scorers(tokenizer, [odd], None, 1)
    assert isinstance(text, str) and "rain_prompts" in caplog.text
    assert prompts_for_scorers(tokenizer, rows[:1], ["given"], 1) == ["given"]
