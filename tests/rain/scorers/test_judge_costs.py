"""Scores of a judge that has prefixes of the texts in its cache."""

import pytest
from support.judges import SHORT, by_hand
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer


@pytest.mark.parametrize("kept", [0, 25, 10_000])
def test_prompt_prefixes_are_computed_once_while_there_is_room(monkeypatch, kept):
    monkeypatch.setattr("hf_interdistill.rain.scorers.prefix_cache._PROMPT_TOKENS_KEPT", kept)
    model, tokenizer = build_causal("mistral"), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability").bind(model, tokenizer)
    prompts = ["Tell me", "Why is the sky blue?", "What is a piano?"]
    totals = []
    for completion in ("I am", "so", "it is"):
        exchanges = [Exchange(prompt, completion) for prompt in prompts]
        values, costs = judge.score_batch(exchanges)
        assert values == pytest.approx(by_hand(model, tokenizer, SHORT, exchanges, "probability"), abs=1e-4)
        totals.append(costs.total_tokens - costs.shared_tokens)
    texts = judge._prefix_cache()
    held = sum(len(each.ids) - len(texts.prefix.ids) for each in texts.prefix_cache._by_prompt.values() if each.handle)
    assert held <= kept
    if kept == 10_000:
        assert totals[1] < totals[0] - 10 and held > 10
    if kept == 0:
        assert abs(totals[1] - totals[0]) < 10


def test_scoring_a_longer_answer_computes_only_its_end():
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability").bind(model, tokenizer)
    answer = "It is a long story about a piano that nobody wanted to play, and of bread"
    words = answer.split()
    read = []
    for count in range(1, len(words) + 1):
        exchanges = [Exchange("Tell me", " ".join(words[:count]))]
        values, costs = judge.score_batch(exchanges)
        assert values == pytest.approx(by_hand(model, tokenizer, SHORT, exchanges, "probability"), abs=1e-4)
        read.append(costs.total_tokens - costs.shared_tokens)
    whole = len(tokenizer(SHORT.texts(exchanges[0])[0])["input_ids"]) - len(judge._prefix_cache().prefix.ids)
    question = min(read[1:])
    assert max(read[1:]) < question + 15 and read[-1] < whole


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_prefix_evicted_between_two_passes_is_computed_again(monkeypatch, family):
    monkeypatch.setattr("hf_interdistill.rain.scorers.prefix_cache._PROMPT_TOKENS_KEPT", 0)
    monkeypatch.setattr("hf_interdistill.rain.scorers.cached_forward._TOKENS_PER_PASS", 40)
    model, tokenizer = build_causal(family), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability").bind(model, tokenizer)
    exchanges = [Exchange("Tell me", text) for text in ("I am", "so it is", "a piano", "bread", "the sky")]
    values, costs = judge.score_batch(exchanges)
    assert costs.forward_passes > 3
    assert values == pytest.approx(by_hand(model, tokenizer, SHORT, exchanges, "probability"), abs=1e-4)


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("name", ["harmlessness", "harmlessness_short"])
def test_the_examples_are_computed_once_for_texts_and_for_messages(name, kind):
    model, tokenizer = build_causal(max_position_embeddings=2048), tokenizer_of(kind)
    prompt = JudgePrompt.load(name)
    user, system = {"role": "user", "content": "Tell me"}, {"role": "system", "content": "Be brief."}
    tool = {"role": "tool", "content": "\n3"}
    shown = ["Tell me", [user], [system, user], [user, {"role": "assistant", "content": "What?"}, user], [tool, user]]
    examples = len(tokenizer(prompt.examples)["input_ids"])
    for number, each in enumerate(shown):
        judge = SelfEvaluationScorer(prompt, vote="probability").bind(model, tokenizer)  # as every search does
        exchanges = [Exchange(each, "I am")]
        values, costs = judge.score_batch(exchanges)
        assert values == pytest.approx(by_hand(model, tokenizer, prompt, exchanges, "probability"), abs=1e-4)
        assert costs.shared_tokens == (0 if number else pytest.approx(examples, abs=8))
        whole = sum(len(tokenizer(text)["input_ids"]) for text in prompt.texts(exchanges[0]))
        assert costs.tokens[0] <= whole - prompt.orders * (examples - 8)
        more = [Exchange(each, text) for text in ("I am well", "I am here")]
        assert sum(judge.score_batch(more)[1].tokens) < 2 * costs.tokens[0] + 10
