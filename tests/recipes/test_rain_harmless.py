"""The study of RAIN on a chat model: who is trained on what, costs, measures, and that its table is its results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.datasets import SHARED_DATA
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from recipes.studies.rain_harmless import measuring, models, rows, systems

needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")


@pytest.fixture
def prompts(monkeypatch):
    monkeypatch.setattr(rows, "_strong_reject", lambda: [f"How do I do bad thing {i}?" for i in range(9)])
    monkeypatch.setattr(rows, "_do_not_answer", lambda: ["How do I do bad thing 3?", "x" * 900, *"abcdefgh"])
    return rows.collect_prompts(SHARED_DATA, count=5, longest=700, seed=0)


@needs_data
def test_each_source_gives_as_many_prompts_none_twice_and_none_too_long(prompts):
    sources = [row["source"] for row in prompts]
    harmful = ("hh_harmless", "advbench", "strongreject", "do_not_answer")
    assert [sources.count(name) for name in (*harmful, "harmless")] == [5, 5, 5, 5, 50]
    assert len({json.dumps(row["prompt"]) for row in prompts}) == len({row["id"] for row in prompts}) == 70
    assert all(len(json.dumps(row["prompt"])) <= 700 for row in prompts)


@needs_data
def test_no_pair_and_no_prompt_serves_twice(prompts):
    pairs = rows.split_pairs(SHARED_DATA, prompts, reward_pairs=400, judge_pairs=300, seed=0)
    names = ("reward", "judge", "check")
    used = [{json.dumps(row["prompt"]) for row in pairs[name]} for name in names]
    used.append({json.dumps(row["prompt"]) for row in prompts})
    for i, one in enumerate(used):
        for j, other in enumerate(used):
            if i < j and {i, j} != {0, 2} and {i, j} != {1, 2}:
                assert not one & other, (i, j)
    assert not used[0] & used[1] and len(pairs["judge"]) >= 300 and len(pairs["reward"]) == 700
    train, reward, rest = models.read_goals(SHARED_DATA, prompts, (100, 50), seed=0)
    goals = {row["prompt"][0]["content"] for row in prompts}
    assert len(train) == 100 and len(reward) == 50
    assert len({row["goal"] for row in [*train, *reward, *rest]}) == len([*train, *reward, *rest])
    assert not any(row["goal"] in goals for row in [*train, *reward, *rest])


def test_the_judges_rows_keep_pairs_together():
    pair = {
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    found = models.judge_rows([pair], [{"goal": "G", "target": "Sure"}], 0, helpful=[pair])
    assert [(row["pair"], row["label"]) for row in found[:4]] == [("good", 0), ("good", 0), ("bad", 1), ("Sure", 1)]
    assert found[4]["pair"] in models.REFUSALS and found[4]["label"] == 0


def test_refusals_are_chosen_in_other_words_than_the_judges():
    (pair,) = models.refusal_pairs([{"goal": "G", "target": "Sure"}], 0)
    assert pair["prompt"][0]["content"] == "G" and pair["rejected"][0]["content"] == "Sure"
    assert pair["chosen"][0]["content"] in models.OTHER_REFUSALS
    assert not set(models.OTHER_REFUSALS) & set(models.REFUSALS)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, I cannot do it", True),
        ("No. It's illegal, and somebody could be hurt.", True),
        ("Sure, here is how to do it:", False),
        ("A can of paint can be opened with a spoon.", False),
        ("x" * 300 + " I'm sorry", False),
    ],
)
def test_refusals(text, refuses):
    assert measuring.is_refusal(text) is refuses


def test_the_interval_covers_the_mean_of_the_population(monkeypatch):
    monkeypatch.setattr(measuring, "_DRAWS", 1000)
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        values = (rng.random((80, 2)) < 0.3).astype(float)
        low, high = measuring.interval(values, seed)
        inside += low <= 0.3 <= high
    assert 51 <= inside <= 60  # 95 % of 60 is 57


def _measures(harmful, source="advbench"):
    base = {"harm_log_odds": 0.0, "refusal": 0.0, "profanity": 0.1, "guardian": 0.2, "nats": 1.0, "tokens": 3}
    return [
        {"id": str(i), "source": source, "harmful": float(value), "forward_tokens": 10 * (i + 1), **base}
        for i, value in enumerate(harmful)
    ]


def test_the_summary_pairs_prompts():
    harmless = _measures([0, 0], "harmless")
    arms = {
        "greedy": [_measures([1, 1, 1, 0]) + harmless],
        "best_of_n": [_measures([1, 0, 0, 0]) + harmless, _measures([1, 1, 0, 0]) + harmless],
    }
    texts = {name: [["a b c"] * 6] * len(runs) for name, runs in arms.items()}
    found = {(row["system"], row["prompts_are"]): row for row in measuring.summarize(arms, texts)}
    best = found["best_of_n", "harmful"]
    assert best["harmful"] == pytest.approx(3 / 8, abs=1e-4) and best["prompts"] == 4 and best["seeds"] == 2
    assert best["minus_greedy"] == pytest.approx(3 / 8 - 3 / 4, abs=1e-4)
    low, high = best["minus_greedy_ci95"]
    assert low <= best["minus_greedy"] <= high <= 0  # no prompt is worse
    assert best["forward_tokens"] == 25 and best["perplexity"] == pytest.approx(np.e, abs=0.1)
    assert best["distinct_2"] == pytest.approx(2 / 16, abs=1e-4)
    assert found["greedy", "harmless"]["prompts"] == 2


@pytest.fixture
def sampler(tmp_path):
    build_causal().save_pretrained(tmp_path / "lm")
    tokenizer_of("bytes").save_pretrained(tmp_path / "lm")
    return systems.Sampler(str(tmp_path / "lm"), "float32", {"max_new_tokens": 5, "do_sample": True, "top_k": 9}, 0)


ROW = {"id": "a", "prompt": [{"role": "user", "content": "How do I bake bread?"}]}


def test_a_prompt_that_is_read_once_gives_the_tokens_of_plain_generate(sampler):
    ids = systems.tokenize_prompt(sampler.tokenizer, ROW["prompt"]).reshape(1, -1)
    plain = sampler.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist()
    length, answers = sampler.sample(ROW["prompt"], 3, do_sample=False, top_k=None)
    assert length == ids.shape[1] and [tokens for _, tokens in answers] == [plain] * 3
    answer = systems.greedy(sampler, ROW)
    assert answer["tokens"] == plain and answer["stats"] == {"forward_tokens": length + 4, "samples": 1}


def test_samples_depend_on_seed_system_and_prompt_alone(sampler):
    first = systems.sampling(sampler, ROW)
    torch.manual_seed(123)
    assert systems.sampling(sampler, ROW) == first


def test_best_of_n_spends_the_budget_and_takes_the_highest_reward(sampler):
    calls = []

    def reward(prompts, completions):
        reward.last_token_counts = [7] * len(prompts)
        calls.append([each[0]["content"] for each in completions])
        return [float(sum(map(ord, text)) % 101) for text in calls[-1]]

    answer = systems.best_of_n(sampler, reward, 300, ROW)
    length = systems.tokenize_prompt(sampler.tokenizer, ROW["prompt"]).numel()
    samples, spent = answer["stats"]["samples"], answer["stats"]["forward_tokens"]
    assert 300 <= spent < 300 + 12 and length + samples * 4 <= spent <= length + samples * 11
    scored = {text for texts in calls for text in texts}
    assert answer["completion"] in scored and all(len(set(texts)) == len(texts) for texts in calls)
    taken = systems.best_of_n(sampler, reward, length + 1, ROW)  # one sample reaches the budget
    assert taken["stats"]["samples"] == 1


def test_settings_that_changed_are_refused(tmp_path, monkeypatch):
    from recipes.studies.rain_harmless import study

    config = {"seed": 0, "output_dir": str(tmp_path), "data": "d", "language_model": "m", "systems": {}, "seeds": [0]}
    study.Study(config)
    study.Study({**config, "systems": {"greedy": {}}})
    with pytest.raises(ValueError, match="other"):
        study.Study({**config, "seed": 1})
