"""Calibrated scores and orders of the judge, against plain forward passes."""

import math
from dataclasses import replace

import pytest
import torch
from support.judges import SHORT, by_hand
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.scorers import self_evaluation
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]
EXCHANGES = [Exchange("Tell me", text) for text in ("I am", "I am well", "", "Never.")]
EXCHANGES += [Exchange(CHAT, text) for text in ("Fine.", "No.")]


def log_odds(model, tokenizer, text: str) -> float:
    """Of label A against label B."""
    first, second = (tokenizer(text + label)["input_ids"] for label in ("A", "B"))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([first[:-1]])).logits[0, -1]
    return (logits[first[-1]] - logits[second[-1]]).item()


def calibrated_by_hand(model, tokenizer, prompt, exchange, vote) -> float:
    votes = []
    for order, text in enumerate(prompt.texts(exchange)):
        free = [prompt.texts(Exchange(exchange.prompt, answer))[order] for answer in ("N/A", "[MASK]", "")]
        bias = sum(log_odds(model, tokenizer, each) for each in free) / 3
        odds = (log_odds(model, tokenizer, text) - bias) * (-1 if order else 1)
        votes.append(float(odds > 0) if vote == "hard" else 1 / (1 + math.exp(-odds)))
    return 2 * sum(votes) / len(votes) - 1


@pytest.mark.parametrize("vote", ["hard", "probability"])
@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_scores_are_relative_to_content_free_answers(family, orders, vote):
    model, tokenizer = build_causal(family), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote=vote, orders=orders, calibrate=True).bind(model, tokenizer)
    prompt = replace(SHORT, orders=orders)
    expected = [calibrated_by_hand(model, tokenizer, prompt, each, vote) for each in EXCHANGES]
    first, costs = judge.score_batch(EXCHANGES)
    again, cheaper = judge.score_batch(EXCHANGES[2:])
    assert first == pytest.approx(expected, abs=1e-4) and again == pytest.approx(expected[2:], abs=1e-4)
    assert len(costs.tokens) == 6 and cheaper.shared_tokens == 0 < costs.shared_tokens
    plain = by_hand(model, tokenizer, prompt, EXCHANGES, "probability")
    assert vote == "hard" or expected != pytest.approx(plain, abs=1e-3)


def test_a_constant_preference_for_a_label_changes_no_calibrated_score():
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    (label,) = tokenizer("A", add_special_tokens=False)["input_ids"]
    model.lm_head = torch.nn.Linear(*model.lm_head.weight.T.shape, bias=True).requires_grad_(False)
    model.lm_head.weight.copy_(build_causal().lm_head.weight)
    values = []
    for bias in (0.0, 30.0):
        model.lm_head.bias.zero_()
        model.lm_head.bias[label] = bias
        judges = [SelfEvaluationScorer(SHORT, vote="probability", orders=1, calibrate=each) for each in (True, False)]
        values.append([judge.bind(model, tokenizer).score_batch(EXCHANGES)[0] for judge in judges])
    assert values[1][0] == pytest.approx(values[0][0], abs=1e-4) and values[1][1] == pytest.approx([1.0] * 6, abs=1e-3)


def test_baselines_are_kept_for_the_prompts_used_last_and_computed_again_for_new_weights(monkeypatch):
    monkeypatch.setattr(self_evaluation, "_BASELINES_KEPT", 2)
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability", calibrate=True).bind(model, tokenizer)
    prompts = ["one", "two", "three", "four"]
    values = [value for prompt in prompts for value in judge.score_batch([Exchange(prompt, "So.")])[0]]
    assert list(judge._kept().baselines) == [repr(prompt) for prompt in prompts[1:]]
    together, _ = judge.score_batch([Exchange(prompt, "So.") for prompt in prompts])
    assert together == pytest.approx(values, abs=1e-5)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    after, costs = judge.score_batch([Exchange("four", "So.")])
    assert costs.shared_tokens > 0
    wanted = calibrated_by_hand(model, tokenizer, SHORT, Exchange("four", "So."), "probability")
    assert after == pytest.approx([wanted], abs=1e-4)


def test_orders_of_a_config_replace_those_of_the_prompt():
    tokenizer = tokenizer_of("bytes")
    for orders, expected in ((None, 2), (1, 1), (2, 2)):
        scorer = RainDecoder(tokenizer, RainConfig(judge_orders=orders, judge_calibration=True)).scorer
        assert scorer.prompt.orders == expected and scorer.calibrate
        assert replace(scorer.prompt, orders=2) == JudgePrompt.load("harmlessness")
        assert scorer.bind(build_causal(), tokenizer).calibrate
    assert not RainDecoder(tokenizer).scorer.calibrate
    with pytest.raises(ValueError, match="`orders: 1`"):
        RainDecoder(tokenizer, RainConfig.preset("fast", judge_orders=2))


def test_the_question_of_the_short_prompt_is_short():
    tokenizer = tokenizer_of("bytes")
    lengths = []
    for name in ("harmlessness", "harmlessness_short"):
        texts = JudgePrompt.load(name).texts(Exchange("How?", "Like this."))
        lengths.append(sum(len(tokenizer(text.split("Like this.")[-1])["input_ids"]) for text in texts))
    assert lengths[1] < lengths[0] / 10
