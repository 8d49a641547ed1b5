"""A real vLLM server with SmolLM2-135M-Instruct, against the same model in process (`make test-server`)."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from support.rain import likes_short_words, tree_shape
from support.vllm_process import vllm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill import RainClient, RainConfig, embedded
from hf_interdistill.cli import main
from hf_interdistill.rain.engine.stopping import StopChecker, StopConditions
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer
from hf_interdistill.rain.search.requests import Expansion
from hf_interdistill.rain.server.decoding import ServedDecoding
from hf_interdistill.rain.server.sampling import ServedSampling
from hf_interdistill.utils.async_calls import run

pytestmark = pytest.mark.server
PROMPTS = ["The sky is blue because", "My favorite recipe for bread starts with", "Never trust"]
QUICK = {"seed": 3, "iterations": 6, "extra_iterations": 2, "min_visits": 2, "candidates": 4, "rollout_max_tokens": 6}


@pytest.fixture(scope="module")
def folder():
    pytest.importorskip("gguf")
    return embedded.language_model()


@pytest.fixture(scope="module", params=["raw_logprobs", "processed_logprobs"])
def url(request, folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with vllm(folder, log, "--max-model-len", "2048", "--logprobs-mode", request.param) as address:
        yield address


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def next_scores(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)


def test_it_answers_as_the_model_in_process(url, loaded):
    model, tokenizer = loaded
    config = RainConfig(**QUICK, sample_top_k=4, edge_lengths=(2,))
    client = RainClient(url, "lm", tokenizer, config)
    client.check(client.resolve({}))

    async def decode(prompt, eos=()):
        rules = StopChecker(
            tuple(tokenizer(prompt)["input_ids"]), tokenizer, config, StopConditions(40, frozenset(eos))
        )
        each = ServedDecoding(client.client, rules, 7, config, ServedSampling())
        async with client.client.servers.connected():
            expansion = Expansion(2, 201, True, tuple(range(200)))
            sets = [await each.token_sets((), expansion) for each.key in range(3)]
            return await each.likeliest((), 10), sets, [await each.roll_out(()) for each.key in range(4)]

    for prompt in PROMPTS[:2]:
        ids = tokenizer(prompt)["input_ids"]
        scores = next_scores(model, ids)
        candidates, sets, rollouts = run(decode(prompt))
        top = scores.topk(10)
        assert [each.tokens[0] for each in candidates] == top.indices.tolist()
        weights = (top.values - top.values[0]).exp().tolist()
        assert [each.weight for each in candidates] == pytest.approx(weights, rel=1e-3)
        wanted = {}
        for first, share in _shares(scores).items():
            wanted |= {(first, b): share * q for b, q in _shares(next_scores(model, [*ids, first])).items()}
        assert sets[0][0][0] == max(wanted, key=lambda each: wanted[(each)] if each[0] == top.indices[0] else 0)
        for tokens, log_prob in sets[0]:
            assert math.exp(log_prob) == pytest.approx(wanted[tokens], rel=2e-3)
        counts = Counter(tokens for each in sets for tokens, _ in each[1:])
        statistic = sum((counts[key] - 600 * share) ** 2 / (600 * share) for key, share in wanted.items())
        assert statistic < 15 + 5 * math.sqrt(30), (statistic, counts)
        for tokens in rollouts:
            text = tokenizer.decode(tokens)
            assert len(tokens) == 6 or text[-1] in config.rollout_stops
            assert not any(tokenizer.decode([token])[-1:] in tuple(config.rollout_stops) for token in tokens[:-1])
    likeliest = int(next_scores(model, tokenizer(PROMPTS[0])["input_ids"]).argmax())
    _, sets, _ = run(decode(PROMPTS[0], eos=(likeliest,)))
    assert sets[0][0][0] == (likeliest,)  # EOS is part of the token set, and ends it


def _shares(scores: torch.Tensor) -> dict[int, float]:
    top = scores.topk(4)
    return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("vote", ["hard", "probability"])
def test_it_judges_as_in_process(url, loaded, vote):
    model, tokenizer = loaded
    scorer = SelfEvaluationScorer("harmlessness_short", vote=vote, calibrate=True)
    chat = [{"role": "user", "content": "How do I pick a lock?"}]
    exchanges = [
        Exchange(p, t) for p in (PROMPTS[2], chat) for t in ("I cannot help.", "Kill them all.", "Use a pick.")
    ]
    client = RainClient(url, "lm", tokenizer, RainConfig(**QUICK))
    client.check(client.resolve({}))
    wanted = scorer.bind(model, tokenizer).score(exchanges)
    assert scorer.bind(client, tokenizer).score(exchanges) == pytest.approx(wanted, abs=1e-3)
    assert vote == "hard" or len({round(value, 3) for value in wanted}) > 2


def test_searches_repeat_and_jobs_resume(url, loaded, folder, tmp_path):
    _, tokenizer = loaded
    config = RainConfig(**QUICK, edge_lengths=(1, 2, 4), turn_markers=("Human:",))
    client = RainClient(url, "lm", tokenizer, config, likes_short_words)
    first, second = (client.generate(PROMPTS, max_new_tokens=10, do_sample=True, top_k=20) for _ in range(2))
    assert [record.tokens for record in first] == [record.tokens for record in second]
    assert [tree_shape(record.tree) for record in first] == [tree_shape(record.tree) for record in second]
    rows = [{"id": number, "prompt": [{"role": "user", "content": prompt}]} for number, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["rain", "--server", url, "--model", "lm", "--tokenizer", folder, "--max_new_tokens", "8"]
    command += ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    command += ["--preset", "fast", "--trees", str(tmp_path / "trees")]
    assert main(command) == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(answer["tokens"]) <= 8 and answer["stats"]["judge_calls"] > 0 for answer in answers] == [True] * 3
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers[:2]))
    assert main(command) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_repetition_penalties_need_processed_log_probabilities(url, loaded):
    client = RainClient(url, "lm", loaded[1], RainConfig(**QUICK), likes_short_words)
    client.check(client.resolve({}))
    if client.client.is_processed:
        (record,) = client.generate(PROMPTS[:1], max_new_tokens=4, repetition_penalty=1.3)
        assert record.stats["committed_tokens"] == 4
        return
    with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        client.generate(PROMPTS[:1], max_new_tokens=4, repetition_penalty=1.3)
