"""`tools` and `chat_template_kwargs` of a prompt's row: in the prompt, in what reward models read, and in resuming."""

from __future__ import annotations

import json
import math

import pytest
from support.models import build_student
from support.rain import QUICK, build_causal, likes_short_words, quick_config
from support.tokenizers import CHAT_TEMPLATE, tokenizer_of
from support.vllm_server import VllmLike, served

from hf_interdistill import RainClient, RewardScorer
from hf_interdistill.rain.api.job_output import JobOutput
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.builtin import RewardModelScorer
from hf_interdistill.rain.scorers.cached_reward import CachedRewardScorer
from hf_interdistill.rain.scorers.score_cache import ScoreCache, ScoreRequest

PROMPT = [{"role": "user", "content": "Weather?"}]
COLUMNS = {"tools": [{"name": "weather"}], "chat_template_kwargs": {"mark": "zebra"}}
PLAIN = "<|user|>\nWeather?<|end|>\n<|assistant|>\n"
SHOWN = {"plain": PLAIN, "marked": '[{"name": "weather"}]zebra' + PLAIN}


def tokenizer_with_columns():
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ mark }}" + CHAT_TEMPLATE
    return tokenizer


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer_of("bytes")(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def folder(tmp_path):
    build_causal().save_pretrained(tmp_path / "model")
    build_student().save_pretrained(tmp_path / "rm")
    for name in ("model", "rm"):
        tokenizer_with_columns().save_pretrained(tmp_path / name)
    write(tmp_path, COLUMNS)
    return tmp_path


def write(folder, columns) -> None:
    rows = [{"id": "plain", "prompt": PROMPT}, {"id": "marked", "prompt": PROMPT, **columns}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def job(folder, **changes) -> RainJobConfig:
    settings = {
        "model": str(folder / "model"),
        "prompts": str(folder / "prompts.jsonl"),
        "output": str(folder / "out.jsonl"),
        "generation": {"max_new_tokens": 3},
        "rain": {**QUICK, "edge_lengths": [1]},
    }
    return RainJobConfig(**{**settings, **changes})


@pytest.fixture
def read(monkeypatch):
    """Prompts of jobs by id, and what reward models were called with."""
    prompts, calls = {}, []
    write_record, encode_rows = JobOutput.write, RewardScorer.encode_rows

    def write(self, number, record):
        row, prompt = self.work[number]
        prompts[row["id"]] = prompt.ids
        write_record(self, number, record)

    def encode(self, given, completions, **columns):
        calls.extend({name: values[number] for name, values in columns.items()} for number in range(len(completions)))
        return encode_rows(self, given, completions, **columns)

    monkeypatch.setattr(JobOutput, "write", write)
    monkeypatch.setattr(RewardScorer, "encode_rows", encode)
    return prompts, calls


@pytest.mark.parametrize("reward_cache", [False, True])
def test_jobs_in_process_read_them(folder, read, reward_cache):
    scorer = {"scorer": "reward", "reward_model": str(folder / "rm"), "reward_cache": reward_cache}
    run_rain_job(job(folder, **scorer))
    prompts, calls = read
    assert prompts == {name: ids_of(text) for name, text in SHOWN.items()}
    assert {json.dumps(each) for each in calls if any(each.values())} == {
        json.dumps({name: COLUMNS[name] for name in sorted(COLUMNS)})
    }
    rows = {row["id"]: row for row in map(json.loads, (folder / "out.jsonl").open())}
    assert {name: rows["marked"][name] for name in COLUMNS} == COLUMNS and not COLUMNS.keys() & rows["plain"].keys()
    assert run_rain_job(job(folder, **scorer))["searched"] == 0


def test_jobs_on_a_server_read_them(folder, model, read):
    backend = VllmLike(model, tokenizer_with_columns())
    with served(backend) as url:
        served_job = {"model": "lm", "server": url, "tokenizer": str(folder / "model")}
        scorer = {"scorer": "reward", "reward_model": str(folder / "rm")}
        run_rain_job(job(folder, **served_job, **scorer))
    prompts, calls = read
    assert prompts == {name: ids_of(text) for name, text in SHOWN.items()}
    sent = [tuple(body["prompt"]) for path, body in backend.requests if path == "/v1/completions"]
    assert all(any(each[: len(ids)] == ids for each in sent) for ids in prompts.values())
    assert any(each.get("chat_template_kwargs") == {"mark": "zebra"} for each in calls)


def test_the_client_reads_them(model, read):
    tokenizer, seen = tokenizer_with_columns(), []

    def reward(prompts, completions, tools=None, chat_template_kwargs=None):
        seen.extend(zip(tools or [None] * len(prompts), chat_template_kwargs or [None] * len(prompts), strict=True))
        return likes_short_words([completion[0]["content"] for completion in completions])

    backend = VllmLike(model, tokenizer)
    with served(backend) as url:
        client = RainClient(url, "lm", tokenizer, quick_config(edge_lengths=(1,)), RewardModelScorer(reward))
        client.generate(
            [PROMPT, PROMPT],
            max_new_tokens=2,
            tools=[None, COLUMNS["tools"]],
            chat_template_kwargs=[None, COLUMNS["chat_template_kwargs"]],
        )
        with pytest.raises(ValueError, match=r"`tools`.*1|1.*`tools`"):
            client.generate([PROMPT, PROMPT], max_new_tokens=2, tools=[None])
    sent = [tuple(body["prompt"]) for path, body in backend.requests if path == "/v1/completions"]
    for text in SHOWN.values():
        assert any(each[: len(ids_of(text))] == ids_of(text) for each in sent)
    assert (None, None) in seen and tuple(COLUMNS.values()) in seen


@pytest.mark.parametrize("kind", [RewardModelScorer, CachedRewardScorer])
def test_rewards_are_of_the_text_with_them(kind):
    scorer = RewardScorer(build_student(), tokenizer_with_columns())
    exchanges = [Exchange(PROMPT, "Sunny.", COLUMNS), Exchange(PROMPT, "Sunny."), Exchange(PROMPT, "Rain.", COLUMNS)]
    columns = {name: [value, None, value] for name, value in COLUMNS.items()}
    rewards = scorer([PROMPT] * 3, [each.completion for each in exchanges], **columns)
    assert rewards[0] != rewards[1]
    assert kind(scorer).score(exchanges) == pytest.approx([math.tanh(reward) for reward in rewards], abs=1e-5)


def test_scores_of_one_prompt_with_other_columns_are_kept_apart():
    scores = ScoreCache(RewardModelScorer(lambda prompts, completions, tools=None: [t is not None for t in tools]))
    requests = [ScoreRequest(None, "p", "a", {"tools": [{}]}), ScoreRequest(None, "p", "a")]
    scores.score(requests, ())
    assert [scores.value_of(each) for each in requests] == [math.tanh(1), 0]


@pytest.mark.parametrize(
    "columns", [{}, {"tools": COLUMNS["tools"]}, {**COLUMNS, "chat_template_kwargs": {"mark": "x"}}]
)
def test_answers_to_other_columns_are_not_resumed(folder, columns):
    config = job(folder, scorer="support.job_scorers:short")
    run_rain_job(config)
    write(folder, columns)
    with pytest.raises(
        ValueError, match=r"result for id 'marked', but its `(tools|chat_template_kwargs)` has changed"
    ):
        run_rain_job(config)


def test_columns_that_are_none_are_named_by_their_row(folder):
    write(folder, {"tools": "weather"})
    with pytest.raises(ValueError, match=r"Prompt 'marked' of .*`tools`"):
        run_rain_job(job(folder, scorer="support.job_scorers:short"))
