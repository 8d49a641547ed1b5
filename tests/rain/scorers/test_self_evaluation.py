"""Scorers. Self-evaluation is compared with plain forward passes, text by text."""

import math

import pytest
import torch
from support.judges import SHORT, by_hand
from support.models import build_student
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.scorers.base import Exchange, ScorerError
from hf_interdistill.rain.scorers.builtin import FunctionScorer, RewardModelScorer
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt, label_tokens
from hf_interdistill.rain.scorers.prompt_texts import judge_prompts
from hf_interdistill.rain.scorers.resolve import as_scorer
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer
from hf_interdistill.rain.scorers.weighted import WeightedScorer
from hf_interdistill.scoring.scorer import RewardScorer

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are {completion}?"}]
EXCHANGES = [Exchange("Tell me", text) for text in ("I am", "I am well", "a {prompt}", "", "I am well")] + [
    Exchange(CHAT, "Fine.")
]


@pytest.mark.parametrize("vote", ["hard", "probability"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_scores_equal_plain_forward_passes(family, vote, kind):
    model, tokenizer = build_causal(family), tokenizer_of(kind)
    judge = SelfEvaluationScorer(SHORT, vote=vote).bind(model, tokenizer)
    values, _ = judge.score_batch(EXCHANGES)
    assert values == pytest.approx(by_hand(model, tokenizer, SHORT, EXCHANGES, vote), abs=1e-4)
    assert values[1] == values[4]


def test_both_orders_and_all_texts_are_one_pass_and_the_prefix_is_computed_once():
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    first = SelfEvaluationScorer(SHORT).bind(model, tokenizer)
    _, costs = first.score_batch(EXCHANGES)
    assert costs.forward_passes == 2  # the examples, and everything else
    assert costs.shared_tokens > 5
    _, again = SelfEvaluationScorer(SHORT).bind(model, tokenizer).score_batch(EXCHANGES)
    assert (again.forward_passes, again.shared_tokens) == (1, 0)
    separate = sum(
        len(tokenizer(text)["input_ids"]) - costs.shared_tokens for each in EXCHANGES for text in SHORT.texts(each)
    )
    assert sum(again.tokens) < 0.7 * separate


def test_only_computed_tokens_are_counted():
    """Without few-shot examples, prompts may share a prefix that is cached from an earlier call."""
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    bare = JudgePrompt("bare", "", "{prompt}{completion}", SHORT.question, SHORT.positive, SHORT.negative)
    judge = SelfEvaluationScorer(bare).bind(model, tokenizer)
    start = "Always answer politely, whatever you are asked, and never be rude."
    exchanges = [Exchange(f"{start} {end}", " Yes, of course.") for end in ("Why?", "How so?", "Where to?")]
    for exchange in exchanges:
        before = judge._prefix_cache().cache.forward_tokens
        values, costs = judge.score_batch([exchange])
        assert values == pytest.approx(by_hand(model, tokenizer, bare, [exchange], "hard"))
        assert costs.total_tokens == judge._prefix_cache().cache.forward_tokens - before


def test_the_prefix_is_computed_again_when_the_weights_change():
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability").bind(model, tokenizer)
    before, _ = judge.score_batch(EXCHANGES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    after, costs = judge.score_batch(EXCHANGES)
    assert after != before
    assert costs.shared_tokens > 0
    assert after == pytest.approx(by_hand(model, tokenizer, SHORT, EXCHANGES, "probability"), abs=1e-4)


def test_many_texts_are_scored_in_several_passes(monkeypatch):
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability").bind(model, tokenizer)
    whole, _ = judge.score_batch(EXCHANGES)
    monkeypatch.setattr("hf_interdistill.rain.scorers.cached_forward._TOKENS_PER_PASS", 60)
    parts, costs = judge.score_batch(EXCHANGES)
    assert costs.forward_passes > 2
    assert parts == pytest.approx(whole, abs=1e-5)


def test_a_separate_judge_is_used():
    model, other, tokenizer = build_causal(), build_causal(seed=5), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT, vote="probability", model=other, tokenizer=tokenizer)
    values, _ = judge.bind(model, tokenizer).score_batch(EXCHANGES)
    assert values == pytest.approx(by_hand(other, tokenizer, SHORT, EXCHANGES, "probability"), abs=1e-4)
    with pytest.raises(ValueError, match="both `model` and `tokenizer`"):
        SelfEvaluationScorer(SHORT, model=other)


def test_a_judge_does_not_keep_its_model_alive():
    import gc
    import weakref

    model, tokenizer = build_causal(), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT).bind(model, tokenizer)
    judge.score_batch(EXCHANGES)
    reference = weakref.ref(model)
    del model, judge
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("name", ["harmlessness", "harmlessness_short", "truthfulness", "sentiment"])
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_built_in_judge_prompts_load(name, kind):
    prompt = JudgePrompt.load(name)
    tokenizer = tokenizer_of(kind)
    tokenizer.add_tokens([" Yes", " No", "Yes", "No"])  # too rare for a vocabulary of 900
    first, second = label_tokens(prompt, tokenizer)
    assert first != second
    texts = prompt.texts(Exchange("What is it?", "It is {first}."))
    assert len(texts) == prompt.orders == (1 if name in ("truthfulness", "harmlessness_short") else 2)
    assert all("It is {first}." in text and "{question}" not in text for text in texts)
    if prompt.orders == 2:
        assert f"(A) {prompt.positive}" in texts[0].rsplit("It is", 1)[1]
        assert f"(B) {prompt.positive}" in texts[1].rsplit("It is", 1)[1]
        assert {prompt.examples.count("Answer: (A)"), prompt.examples.count("Answer: (B)")} == {2}
    assert set(judge_prompts()) == {"harmlessness", "harmlessness_short", "truthfulness", "sentiment"}


@pytest.mark.parametrize(
    "labels",
    [("A", "A"), ("Apple", "Banana"), ("A", "BC"), ("☃", "☂")],
)
def test_indistinguishable_labels_are_refused(labels):
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"cannot tell the labels .* apart"):
        SelfEvaluationScorer(replace(SHORT, labels=labels)).bind(build_causal(), tokenizer_of("metaspace"))


def test_a_judge_longer_than_the_context_is_refused():
    model, tokenizer = build_causal(max_position_embeddings=64), tokenizer_of("bytes")
    judge = SelfEvaluationScorer(SHORT).bind(model, tokenizer)
    with pytest.raises(ScorerError, match="but its context is 64"):
        judge.score_batch([Exchange("Tell me", "word " * 80)])


def test_judge_prompts_of_users_and_their_errors(tmp_path):
    def write(**changes):
        fields = {"examples": "x\n", "plain": "{prompt} {completion}", "question": "{first} {second} (", **changes}
        path = tmp_path / "mine.yaml"
        path.write_text("\n".join(f"{name}: {value!r}" for name, value in fields.items() if value is not None))
        return path

    assert JudgePrompt.load(write(labels=["C", "D"])).labels == ("C", "D")
    assert JudgePrompt.load(write()).name == "mine"
    cases = [
        ({"exampels": "y"}, "the nearest is `examples`"),
        ({"question": None}, "lacks question"),
        ({"plain": "{prompt}"}, "lacks `{completion}`"),
        ({"question": "what?"}, "cannot be swapped"),
        ({"orders": 3}, "must be 1 or 2"),
        ({"labels": ["A"]}, "there must be two"),
    ]
    for changes, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            JudgePrompt.load(write(**changes))
    with pytest.raises(ValueError, match="harmlessness, harmlessness_short, sentiment, truthfulness"):
        JudgePrompt.load("harmles")


def test_rewards_are_mapped_by_tanh():
    def reward(prompts, completions):
        assert completions[-1] == [{"role": "assistant", "content": "Fine."}]
        assert prompts[-1] == CHAT and prompts[0] == "Tell me"
        return [0.0, 2.0, -2.0, 1e9, 4.0, 2.0]

    values, costs = RewardModelScorer(reward, scale=2.0, center=2.0).score_batch(EXCHANGES)
    assert values == pytest.approx([math.tanh(-1), 0, math.tanh(-2), 1, math.tanh(1), 0])
    assert costs.total_tokens == 0
    with pytest.raises(ValueError, match="`scale` is 0"):
        RewardModelScorer(reward, scale=0)


def test_tokens_of_a_reward_model_are_counted():
    model = build_student("gpt2")
    reward = RewardScorer(model, tokenizer_of("bytes"), batch_size=2)
    exchanges = [Exchange("Tell me", f" {text}") for text in ("more", "a long and winding story", "nothing")]
    values, costs = RewardModelScorer(reward).score_batch(exchanges)
    texts = [each.prompt + each.completion + "</s>" for each in exchanges]
    assert costs.tokens == [len(tokenizer_of("bytes")(text)["input_ids"]) for text in texts]
    assert costs.forward_passes == 2 and len(values) == 3
    assert RewardModelScorer(reward).score_batch(exchanges[:1])[1].tokens == costs.tokens[:1]


def test_functions_see_completions_or_whole_texts():
    seen = []

    def scorer(texts):
        seen.append(list(texts))
        return [0.5] * len(texts)

    exchanges = [EXCHANGES[0], EXCHANGES[-1]]
    assert FunctionScorer(scorer).score_batch(exchanges)[0] == [0.5, 0.5]
    FunctionScorer(scorer, with_prompt=True).score_batch(exchanges)
    assert seen[0] == ["I am", "Fine."]
    assert seen[1] == ["Tell meI am", "System: Be brief.\nUser: How are {completion}?\nAssistant: Fine."]


def test_a_weighted_mix():
    mix = WeightedScorer([(lambda texts: [1.0] * len(texts), 3), (lambda texts: [-1.0] * len(texts), 1)])
    assert mix.bind(None, None).score_batch(EXCHANGES)[0] == pytest.approx([0.5] * 6)
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    both = WeightedScorer([(SelfEvaluationScorer(SHORT), 1.0), (lambda texts: [0.0] * len(texts), 1.0)])
    values, costs = both.bind(model, tokenizer).score_batch(EXCHANGES)
    assert values == pytest.approx([value / 2 for value in by_hand(model, tokenizer, SHORT, EXCHANGES, "hard")])
    assert costs.forward_passes == 2 and costs.total_tokens > 0
    for weights in ([], [0.0], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match="all positive"):
            WeightedScorer([(lambda texts: texts, weight) for weight in weights])


def test_what_users_pass_becomes_a_scorer():
    class Reward:
        def __call__(self, prompts, completions, batch_size=8, **kwargs):
            return [0.0] * len(prompts)

    assert isinstance(as_scorer(Reward()), RewardModelScorer)
    assert isinstance(as_scorer(lambda texts: texts), FunctionScorer)
    assert isinstance(as_scorer(lambda texts, scale=1: texts), FunctionScorer)
    own = as_scorer("self", judge="sentiment", vote="probability")
    assert (own.prompt.name, own.vote) == ("sentiment", "probability")
    assert as_scorer(own) is own


def test_values_must_be_numbers():
    with pytest.raises(ScorerError, match="one number per text"):
        FunctionScorer(lambda texts: None).score_batch(EXCHANGES)
    assert FunctionScorer(lambda texts: torch.full((len(texts),), 1 + 1e-9)).score_batch(EXCHANGES)[0] == [1.0] * 6
