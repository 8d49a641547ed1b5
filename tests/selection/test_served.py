"""Best-of-n with a policy and a reward model on servers."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

import pytest
import torch
from support.models import build_student
from support.selection import PROMPTS, build_policy, read, samples, write_rows
from support.serving import served as served_by_us
from support.tokenizers import tokenizer_of
from support.vllm_server import RefusalError, VllmLike, served

from hf_interdistill import RewardScorer, run_best_of_n
from hf_interdistill.selection.served_candidates import ServedSampler
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.utils import servers
from hf_interdistill.utils.server_pool import ModelServers
from hf_interdistill.utils.servers import ServerError
from hf_interdistill.utils.sharded_jobs import FailedRowsError


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


@pytest.fixture(scope="module")
def policy():
    return build_policy().eval()


@pytest.fixture
def backend(policy):
    return VllmLike(policy, tokenizer_of("bytes"), "lm", reward_model=build_student())


@pytest.fixture
def url(backend):
    with served(backend) as address:
        yield address


@pytest.fixture
def served_job(job, models, url):
    def make(**changes):
        settings = {"model": "lm", "server": url, "tokenizer": str(models / "policy")}
        return job(**{**settings, **changes})

    return make


def sampler_of(url, seed=0, **generation):
    return ServedSampler(ModelServers(url), "lm", tokenizer_of("bytes"), generation, seed=seed)


def test_samples_follow_the_distribution(url, policy):
    tokenizer = tokenizer_of("bytes")
    sampler = sampler_of(url, max_new_tokens=1, temperature=0.5, top_k=4)
    requests = [(name, "Tell me", number) for name in range(5) for number in range(400)]
    drawn = Counter(candidate.text for candidate in sampler(requests))
    with torch.no_grad():
        logits = policy(torch.tensor([tokenizer("Tell me")["input_ids"]])).logits[0, -1] / 0.5
    top = logits.topk(4)
    for token, share in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
        text = tokenizer.decode([token], skip_special_tokens=True)
        deviation = (2000 * share * (1 - share)) ** 0.5
        assert abs(drawn[text] - 2000 * share) < 4 * deviation + 1
    assert sum(drawn.values()) == 2000


def test_a_candidate_depends_on_its_prompts_id_and_number_alone(url):
    sampler = sampler_of(url, max_new_tokens=6)
    few = sampler([("a", "Tell me", number) for number in range(2)])
    many = sampler([(name, "Tell me", number) for name in ("b", "a") for number in range(5)])
    assert many[5:7] == few
    assert many[:5] != many[5:]
    assert sampler_of(url, seed=1, max_new_tokens=6)([("a", "Tell me", 0)]) != few[:1]


def test_candidates_end_where_they_should(url):
    requests = [("a", "Tell me", number) for number in range(40)]
    plain = sampler_of(url, max_new_tokens=8)(requests)
    assert {each.finish_reason for each in plain} <= {"length", "eos"}
    letter = next(each.text[2] for each in plain if len(each.text) > 4 and each.text[2].isascii())
    for candidate in sampler_of(url, max_new_tokens=8, stop_strings=letter)(requests):
        assert (candidate.finish_reason == "stop") == (letter in candidate.text)
        assert letter not in candidate.text[:-1]
    ends = sampler_of(url, max_new_tokens=8, eos_token_id=list(range(4, 900)))(requests)
    assert {each.finish_reason for each in ends} == {"eos"}


def test_a_job_on_servers(served_job, models, url, backend):
    reward = {"reward_model": "lm", "reward_server": url, "reward_api": "classify"}
    reward["reward_tokenizer"] = str(models / "rm")
    summary = run_best_of_n(served_job(**reward))
    assert (summary["prompts"], summary["candidates"]) == (5, 20)
    rows = read(served_job().output)
    scorer = RewardScorer.from_pretrained(str(models / "rm"))
    for row in rows:
        assert row["rewards"] == pytest.approx(scorer([row["prompt"]] * 4, row["completions"]), abs=1e-5)
    assert rows[1]["completions"] != rows[3]["completions"]  # equal prompts with ids of their own
    count = len(backend.requests)
    assert run_best_of_n(served_job(**{**reward, "server": "http://127.0.0.1:9"}))["scored"] == 0
    assert len(backend.requests) == count


def prompts_asked(backend) -> list[tuple[int, ...]]:
    return [tuple(body["prompt"]) for path, body in backend.requests if path == "/v1/completions" and body["n"] == 4]


def written(folder) -> list[dict]:
    return [row for shard in folder.rglob("scored.jsonl.shard-*") for row in read(shard)]


def test_a_server_that_dies_loses_no_finished_prompt(served_job, backend, tmp_path):
    """All prompts are in flight when it dies; the resumed job asks only for what is missing."""
    run_best_of_n(served_job(output=str(tmp_path / "whole.jsonl")))
    asked = [0]

    def fault(path, body):
        if path == "/v1/completions" and body.get("n") == 4:
            asked[0] += 1
            return (500, "dead") if asked[0] > 3 else None

    backend.fault = fault
    with pytest.raises(ServerError, match="dead"):
        run_best_of_n(served_job())
    rows = written(tmp_path)
    assert len(rows) == 3 and all("rewards" in row for row in rows)
    backend.fault = None
    count = len(prompts_asked(backend))
    assert run_best_of_n(served_job())["scored"] == 2
    missing = [PROMPTS[number] for number in range(5) if f"p{number}" not in {row["id"] for row in rows}]
    wanted = [tuple(tokenizer_of("bytes")(prompt)["input_ids"]) for prompt in missing]
    assert sorted(prompts_asked(backend)[count:]) == sorted(wanted)
    assert samples(served_job().output) == samples(tmp_path / "whole.jsonl")


def test_a_slow_prompt_holds_no_other_up(served_job, backend, monkeypatch, tmp_path):
    """Two prompts are in flight at most; the first is answered when the others are on the disk."""
    monkeypatch.setattr("hf_interdistill.selection.served_job._IN_FLIGHT", 8)
    slow, running, most, seen = tokenizer_of("bytes")(PROMPTS[0])["input_ids"], [0], [0], []
    answer = backend.answer

    def watched(path, body):
        if path != "/v1/completions" or body.get("n") != 4:
            return answer(path, body)
        running[0] += 1
        most[0] = max(most[0], running[0])
        end = time.monotonic() + 30
        while body["prompt"] == slow and len(written(tmp_path)) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        if body["prompt"] == slow:
            seen.append(len(written(tmp_path)))
        found = answer(path, body)
        running[0] -= 1
        return found

    monkeypatch.setattr(backend, "answer", watched)
    run_best_of_n(served_job())
    assert seen == [4] and most == [2]


def test_a_reward_server_that_dies_loses_no_scored_prompt(served_job, job, models, url, backend, tmp_path):
    """With sampled candidates, and with given ones."""
    reward = {"reward_model": "lm", "reward_server": url, "reward_api": "classify", "batch_size": 4}
    reward["reward_tokenizer"] = str(models / "rm")
    run_best_of_n(served_job(output=str(tmp_path / "whole.jsonl"), **reward))
    given = [{key: row[key] for key in ("id", "prompt", "completions")} for row in read(tmp_path / "whole.jsonl")]
    ready = {"model": None, "generation": {}, "prompts": write_rows(tmp_path / "given.jsonl", given)}
    for number, make in enumerate((served_job(**reward), job(**ready, **reward))):
        config = dataclasses.replace(make, output=str(tmp_path / str(number) / "scored.jsonl"))
        asked = [0]

        def fault(path, body, asked=asked):
            asked[0] += path == "/classify"
            return (500, "dead") if path == "/classify" and asked[0] > 3 else None

        backend.fault = fault
        with pytest.raises(ServerError, match="dead"):
            run_best_of_n(config)
        assert len(written(tmp_path / str(number))) == 3
        backend.fault = None
        assert run_best_of_n(config)["scored"] == 2
        assert [row["rewards"] for row in read(config.output)] == [
            pytest.approx(row["rewards"], abs=1e-5) for row in read(tmp_path / "whole.jsonl")
        ]


def test_a_prompt_that_the_server_refuses_gets_an_error(served_job, backend, tmp_path):
    refused = tokenizer_of("bytes")(PROMPTS[2])["input_ids"]

    def fault(path, body):
        if path == "/v1/completions" and body["prompt"] == refused:
            raise RefusalError("too odd")

    backend.fault = fault
    for missing in (5, 1):
        count = len(prompts_asked(backend))
        with pytest.raises(FailedRowsError, match=r"1 of 5 rows of .* first is id 'p2': .*refused.*\(400\): too odd"):
            run_best_of_n(served_job())
        assert len(prompts_asked(backend)) - count == missing
        rows = read(served_job().output)
        assert ["rewards" in row for row in rows] == ["error" not in row for row in rows]
        assert [row["id"] for row in rows if "error" in row] == ["p2"] and "completions" not in rows[2]
    backend.fault = None
    assert run_best_of_n(served_job())["scored"] == 1


def test_more_stop_strings_than_a_server_takes(url, backend):
    """vLLM takes four; the others end the text all the same."""
    requests = [("a", "Tell me", number) for number in range(20)]
    plain = sampler_of(url, max_new_tokens=8)(requests)
    letters = sorted({letter for each in plain for letter in each.text if letter.isascii() and letter.isalpha()})
    stops = ["<never>", "<ever>", "<no>", "<none>", *letters[:2]]
    found = sampler_of(url, max_new_tokens=8, stop_strings=stops)(requests)
    assert backend.requests[-1][1]["stop"] == stops[:4]
    for candidate, whole in zip(found, plain, strict=True):
        ends = [whole.text.index(stop) + len(stop) for stop in stops if stop in whole.text]
        assert candidate.text == whole.text[: min(ends, default=None)]
        assert (candidate.finish_reason == "stop") == bool(ends)
    assert any(each.finish_reason == "stop" for each in found)


def test_several_servers_give_the_candidates_of_one(served_job, policy, backend, url, models, monkeypatch, tmp_path):
    """With one that is down, and one that dies; as many prompts are asked for at once as the servers can take."""
    monkeypatch.setattr("hf_interdistill.selection.served_job._IN_FLIGHT", 4)  # a prompt for each server
    run_best_of_n(served_job(output=str(tmp_path / "whole.jsonl")))
    other = VllmLike(policy, tokenizer_of("bytes"), "lm", reward_model=build_student())
    other.fault = lambda path, body: (500, "dead") if len(other.requests) > 12 else None
    with served(other) as second:
        servers_of_both = [url, second, "http://127.0.0.1:9"]
        reward = {"reward_model": "lm", "reward_server": servers_of_both, "reward_api": "classify"}
        reward["reward_tokenizer"] = str(models / "rm")
        assert run_best_of_n(served_job(server=servers_of_both, **reward))["scored"] == 5
    assert [row["completions"] for row in read(served_job().output)] == [
        row["completions"] for row in read(tmp_path / "whole.jsonl")
    ]
    assert [row["rewards"] for row in read(served_job().output)] == [
        pytest.approx(row["rewards"], abs=1e-5) for row in read(tmp_path / "whole.jsonl")
    ]
    sampled = [sum(body.get("n") == 4 for _, body in each.requests) for each in (backend, other)]
    assert min(sampled) > 0, sampled


def test_a_dead_reward_server_ends_the_job(served_job, models, url, backend):
    backend.fault = lambda path, body: (500, "dead") if path == "/classify" else None
    reward = {"reward_model": "lm", "reward_server": url, "reward_api": "classify"}
    reward["reward_tokenizer"] = str(models / "rm")
    with pytest.raises(ServerError, match="dead"):
        run_best_of_n(served_job(**reward))


def test_candidates_are_scored_by_interdistill_serve(job, models):
    scorer = RewardScorer.from_pretrained(str(models / "rm"))
    with served_by_us(RewardApp(RewardScorer.from_pretrained(str(models / "rm")), "rm")) as url:
        run_best_of_n(job(reward_model="rm", reward_server=url))
    for row in read(job().output):
        assert row["rewards"] == pytest.approx(scorer([row["prompt"]] * 4, row["completions"]), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None, "generation": {}}, "`server` is set, but no `model`"),
        ({"dtype": "bfloat16"}, "`dtype` changes nothing without a model that is loaded here"),
        ({"reward_tokenizer": "a"}, "`reward_tokenizer` changes nothing without `reward_server`"),
        ({"generation": {"num_beams": 2}}, "`num_beams"),
        ({"generation": {"max_new_tokens": 4, "min_p": 0.2}}, "`min_p` is 0.2, but a server is sent only"),
        ({"generation": {}}, "neither `max_new_tokens` nor `max_length`"),
        ({"generation": {"max_new_tokens": 600}}, "Prompt 'p0' .*`--max-model-len` of 512"),
    ],
)
def test_settings_that_a_server_cannot_take(served_job, changes, message):
    with pytest.raises(ValueError, match=message):
        run_best_of_n(served_job(**changes))


def test_prompts_of_the_fixture_are_those_of_the_job(served_job):
    run_best_of_n(served_job(n=1))
    assert [row["prompt"] for row in read(served_job().output)] == PROMPTS
