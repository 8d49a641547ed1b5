"""Each request and answer as its client sends and reads it; the rewards are `RewardScorer`'s."""

from __future__ import annotations

import pytest
from support.tokenizers import tokenizer_of

from hf_interdistill.scoring.serving import read_answer, request_body, serving_text

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = ["Paris.", "It is Lyon, I think.", "I do not know, but it may be a city in the north of the country."]


def conversation(answer: str) -> list[dict]:
    return [*QUESTION, {"role": "assistant", "content": answer}]


@pytest.fixture
def expected(twin):
    return twin([QUESTION] * 3, ANSWERS)


def near(rewards):
    return pytest.approx(rewards, abs=1e-5)


def test_score_takes_what_the_scorer_takes(client, twin, expected):
    body = {"prompts": [QUESTION] * 3, "completions": ANSWERS}
    answer = client.post("/score", json=body).json()
    assert answer["model"] == "tiny" and answer["rewards"] == near(expected)
    assert answer["tokens"] == [len(twin.encode(QUESTION, text, {})) for text in ANSWERS]
    whole = client.post("/score", json={"completions": [conversation(text) for text in ANSWERS]}).json()
    assert whole["rewards"] == near(expected)
    plain = {"prompts": ["Question: why? ", None], "completions": ["So.", "Because."]}
    assert client.post("/score", json=plain).json()["rewards"] == near(twin(*plain.values()))
    assert client.post("/score", json={"prompts": [], "completions": []}).json()["rewards"] == []


def test_score_hands_tools_and_template_arguments_on(client, scorer, twin):
    template = "{% if shout %}LOUD {% endif %}{{ tools | tojson if tools else '' }}" + scorer.tokenizer.chat_template
    scorer.tokenizer.chat_template = twin.tokenizer.chat_template = template
    tools = [[{"type": "function", "function": {"name": "look"}}], None]
    columns = {"tools": tools, "chat_template_kwargs": [None, {"shout": True}]}
    body = {"prompts": [QUESTION] * 2, "completions": ANSWERS[:2], **columns}
    rewards = client.post("/score", json=body).json()["rewards"]
    assert rewards == near(twin([QUESTION] * 2, ANSWERS[:2], **columns))
    assert rewards != near(twin([QUESTION] * 2, ANSWERS[:2]))


@pytest.mark.parametrize("closing", ["<|end|>\n", "<|end|>", "", "<|end|>\n</s>", "<|end|></s><pad><pad>"])
def test_openrlhf_queries_are_closed_as_in_training(client, expected, closing):
    """Queries are decoded token ids: with EOS, with padding, or cut off."""
    tokenizer = tokenizer_of("bytes")
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    queries = [prompt + text + closing for text in ANSWERS]
    answer = client.post("/get_reward", json={"query": queries, "prompts": [prompt] * 3, "labels": ["", "", ""]})
    assert answer.json() == {"rewards": near(expected), "scores": near(expected)}


@pytest.mark.parametrize("around", [("", ""), ("<s>", "</s>"), ("<pad><pad><s>", "</s><pad>")])
def test_openrlhf_queries_without_a_template_are_plain_text(client, twin, around):
    texts = ["Question: why? Because.", "Question: who? Nobody."]
    rewards = client.post("/get_reward", json={"query": [text.join(around) for text in texts]}).json()["rewards"]
    assert rewards == near(twin([None, None], texts))


def test_slime_gets_a_number_for_each_sample(client, expected, twin):
    prompt = tokenizer_of("bytes").apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    for text, reward in zip(ANSWERS, expected, strict=True):
        rendered = {"prompt": prompt, "response": text + "<|end|>", "label": "Paris"}
        assert client.post("/remote_rm", json=rendered).json() == near(reward)
        messages = {"prompt": QUESTION, "response": text, "label": None}
        assert client.post("/remote_rm", json=messages).json() == near(reward)
    plain = client.post("/remote_rm", json={"prompt": "Why? ", "response": "So."}).json()
    assert plain == near(twin(["Why? "], ["So."])[0])


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_answers_as_vllm_does(client, twin, expected, path):
    texts = [serving_text(twin, {"prompt": QUESTION, "completion": text}, "completion") for text in ANSWERS]
    for form in ("tokens", "text"):
        answer = client.post(path, json=request_body(texts, "classify", form, "tiny")).json()
        assert read_answer(answer, "classify", 3) == near(expected)
    assert answer["data"][0] == {"index": 0, "label": "reward", "probs": [near(expected[0])], "num_classes": 1}
    assert answer["object"] == "list" and answer["model"] == "tiny" and isinstance(answer["created"], int)
    tokens = sum(len(text.ids) for text in texts)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
    one = client.post(path, json=request_body(texts[:1], "classify", "messages")).json()
    assert read_answer(one, "classify", 1) == near(expected[:1])


def test_verl_reads_the_last_number_of_vllm_and_sglang(client, twin, expected):
    prompt = tokenizer_of("bytes").apply_chat_template(conversation(ANSWERS[0]), tokenize=False)
    vllm = client.post("/classify", json={"model": "tiny", "input": prompt, "activation": False}).json()
    assert vllm["data"][-1]["probs"][-1] == near(expected[0])
    sglang = client.post("/v1/embeddings", json={"model": "tiny", "input": prompt}).json()
    assert sglang["data"][-1]["embedding"][-1] == near(expected[0])


def test_sglang_gets_a_list_for_texts_and_an_object_for_one(client, twin, expected):
    texts = [twin.tokenizer.apply_chat_template(conversation(text), tokenize=False) for text in ANSWERS]
    many = client.post("/classify", json={"model": "tiny", "text": texts}).json()
    assert [item["embedding"] for item in many] == [[near(reward)] for reward in expected]
    one = client.post("/classify", json={"input_ids": twin.encode(QUESTION, ANSWERS[1], {})}).json()
    assert one["embedding"] == [near(expected[1])] and one["meta_info"]["prompt_tokens"] > 0


def test_pooling_answers_as_vllm_does(client, twin, expected):
    texts = [serving_text(twin, {"prompt": QUESTION, "completion": text}, "completion") for text in ANSWERS]
    answer = client.post("/pooling", json=request_body(texts, "pooling", "tokens")).json()
    assert read_answer(answer, "pooling", 3) == near(expected)


def test_bos_is_not_read_twice(client, scorer, twin):
    from tokenizers import processors

    for each in (scorer, twin):
        token = ("<s>", each.tokenizer.convert_tokens_to_ids("<s>"))
        each.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[token]
        )
    ids = twin.tokenizer("Why? So.")["input_ids"]
    expected = twin.score_ids([ids])
    for text in ("Why? So.", "<s>Why? So."):
        answer = client.post("/classify", json={"input": text}).json()
        assert read_answer(answer, "classify", 1) == near(expected)
        assert answer["usage"]["prompt_tokens"] == len(ids)
    bare = client.post("/classify", json={"input": "Why? So.", "add_special_tokens": False}).json()
    assert bare["usage"]["prompt_tokens"] == len(ids) - 1
