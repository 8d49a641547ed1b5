"""Servers that fail: retries, and jobs that lose nothing and do nothing twice."""

from __future__ import annotations

import json

import pytest
from support.rain import QUICK, build_causal, likes_short_words, quick_config, tree_shape
from support.tokenizers import tokenizer_of
from support.vllm_server import RefusalError, VllmLike, served

from hf_interdistill import RainClient
from hf_interdistill.cli import main
from hf_interdistill.rain.api import job_output, served_generation
from hf_interdistill.rain.api.job_config import RainJobConfig
from hf_interdistill.rain.api.jobs import run_rain_job
from hf_interdistill.utils import servers
from hf_interdistill.utils.servers import ServerError
from hf_interdistill.utils.sharded_jobs import FailedRowsError

PROMPTS = ["How do I bake bread?", "Tell me", "Why is the sky blue?", "Tell me", "What is a piano?"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Waits between tries are cut."""
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


@pytest.fixture
def folder(tmp_path):
    tokenizer_of("bytes").save_pretrained(tmp_path / "tokenizer")
    rows = [{"id": f"row {number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def job(folder, url, **changes):
    settings = {
        "model": "lm",
        "server": url,
        "tokenizer": str(folder / "tokenizer"),
        "prompts": str(folder / "prompts.jsonl"),
        "output": str(folder / "out.jsonl"),
        "generation": {"max_new_tokens": 5},
        "scorer": "support.job_scorers:short",
        "rain": {**QUICK, "max_batch_size": 2, "edge_lengths": [1, 2]},
    }
    return RainJobConfig(**{**settings, **changes})


def answers(folder, name="out.jsonl"):
    files = [path for path in folder.glob(f"{name}*") if not path.name.endswith(".settings.json")]  # shards too
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: (row["completion"], row["tokens"]) for row in rows if "error" not in row}


def failing_every(number, fault):
    """A fault of each request with this number, counted from the first completion on."""
    calls = [0]

    def each(path, body):
        if path != "/v1/completions" or (body["max_tokens"] == 1 and "allowed_token_ids" in body):
            return None
        calls[0] += 1
        return fault if calls[0] % number == 0 else None

    return each


@pytest.mark.parametrize(
    "fault", [(500, {"error": {"message": "out of memory"}}), (503, "busy"), (429, "slow down"), (200, "{no"), "cut"]
)
def test_failures_that_pass_change_nothing(model, tokenizer, fault):
    def search(backend):
        with served(backend) as url:
            client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words, backoff=0.001)
            return [tree_shape(record.tree) for record in client.generate(PROMPTS[:2], max_new_tokens=4)]

    plain = search(VllmLike(model, tokenizer))
    assert search(VllmLike(model, tokenizer, fault=failing_every(3, fault))) == plain


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((500, {"error": {"message": "out of memory"}}), r"failed \(500: out of memory\).*Its log says why"),
        ("cut", "cut the connection"),
        ((200, "{no"), "not JSON"),
    ],
)
def test_failures_that_stay_are_reported(url, backend, tokenizer, fault, message):
    client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words, backoff=0.001, retries=2)
    client.check(client.resolve({}))
    backend.fault = lambda path, body: fault
    with pytest.raises(ServerError, match=message) as caught:
        client.generate(["Tell me"], max_new_tokens=4)
    assert [record.finish_reason for record in caught.value.records] == ["unfinished"]
    assert "tried 3 times" in str(caught.value) and "run the same command again" in str(caught.value)


def test_a_slow_server_is_not_waited_for_longer_than_the_limit(url, backend, tokenizer):
    from support.vllm_server import slow

    client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words, timeout=0.3, backoff=0, retries=1)
    client.check(client.resolve({}))
    backend.fault = slow(1.0)
    with pytest.raises(ServerError, match=r"did not answer within 0.3 seconds.*tried 2 times. Raise `timeout`"):
        client.generate(["Tell me"], max_new_tokens=4)


def test_a_job_writes_what_the_client_gives(folder, url, tokenizer):
    summary = run_rain_job(job(folder, url, trees=str(folder / "trees")))
    assert (summary["prompts"], summary["searched"]) == (5, 5)
    config = quick_config(max_batch_size=2, edge_lengths=(1, 2))
    records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(PROMPTS, max_new_tokens=5)
    wanted = {f"row {number}": (record.text, record.tokens) for number, record in enumerate(records)}
    assert answers(folder) == wanted
    assert len(list((folder / "trees").glob("*.json"))) == 5


def test_progress_within_a_prompt_is_shown(folder, url, monkeypatch):
    shown = []

    class Bar(job_output.tqdm):
        def set_postfix(self, *args, **kwargs):
            shown.append((self.n, kwargs["tokens"], kwargs["iterations"]))
            super().set_postfix(*args, **kwargs)

    monkeypatch.setattr(job_output, "tqdm", Bar)
    run_rain_job(job(folder, url))
    assert [tokens for finished, tokens, _ in shown if finished == 0][:2] != []
    assert shown == sorted(shown, key=lambda each: each[1])
    assert shown[-1][1] == sum(len(tokens) for _, tokens in answers(folder).values())
    assert all(iterations > 0 for _, _, iterations in shown)


def test_a_server_that_dies_in_mid_job_loses_nothing_finished(folder, model, tokenizer):
    backend = VllmLike(model, tokenizer)
    with served(backend) as url:
        run_rain_job(job(folder, url, output=str(folder / "whole.jsonl")))
    whole = answers(folder, "whole.jsonl")
    total, backend = len(backend.requests), VllmLike(model, tokenizer)
    backend.fault = lambda path, body: (500, "dead") if len(backend.requests) > total * 0.6 else None
    with served(backend) as url, pytest.raises(ServerError, match=r"failed \(500: dead\).*Finished results are kept"):
        run_rain_job(job(folder, url))
    kept = answers(folder)
    assert 0 < len(kept) < 5 and kept.items() <= whole.items()
    backend = VllmLike(model, tokenizer)
    with served(backend) as url:  # another address
        assert run_rain_job(job(folder, url))["searched"] == 5 - len(kept)
    assert answers(folder) == whole
    done = {tuple(tokenizer(PROMPTS[int(name[4:])])["input_ids"]) for name in kept}
    left = {tuple(tokenizer(PROMPTS[int(name[4:])])["input_ids"]) for name in whole.keys() - kept.keys()}
    asked = [tuple(body["prompt"]) for path, body in backend.requests if body.get("seed") not in (None, 1)]
    assert asked
    for ids in done - left:
        assert not any(each[: len(ids)] == ids for each in asked)


def test_a_finished_job_asks_no_server(folder, url, backend):
    run_rain_job(job(folder, url))
    count = len(backend.requests)
    assert run_rain_job(job(folder, "http://127.0.0.1:9"))["searched"] == 0
    assert len(backend.requests) == count


def test_a_prompt_that_the_server_refuses_gets_an_error_and_the_others_an_answer(folder, url, backend, tokenizer):
    refused = tokenizer(PROMPTS[2])["input_ids"]

    def fault(path, body):
        if path == "/v1/completions" and body["prompt"][: len(refused)] == refused:
            raise RefusalError("Out of luck")

    backend.fault = fault
    with pytest.raises(FailedRowsError, match=r"1 of 5 rows.*row 2.*Out of luck"):
        run_rain_job(job(folder, url))
    assert len(answers(folder)) == 4
    backend.fault = None
    assert run_rain_job(job(folder, url))["searched"] == 1
    assert len(answers(folder)) == 5


def test_another_model_in_mid_job_is_reported(folder, url, backend):
    def fault(path, body):
        if len(backend.requests) > 40:
            backend.name = "other"

    backend.fault = fault
    with pytest.raises(ServerError, match="The model `lm` does not exist"):
        run_rain_job(job(folder, url))
    with pytest.raises(ValueError, match="no model 'lm'; it serves 'other'"):
        run_rain_job(job(folder, url))


def test_the_command_line(folder, url, capsys):
    config = job(folder, url)
    command = ["rain", "--model", "lm", "--server", url, "--tokenizer", config.tokenizer, "--prompts", config.prompts]
    command += ["--output", config.output, "--scorer", config.scorer, "--iterations", "8", "--candidates", "4"]
    assert main([*command, "--max_new_tokens", "3", "--rollout_max_tokens", "4"]) == 0
    assert len(answers(folder)) == 5
    down = ["http://127.0.0.1:9" if part == url else part for part in command]
    assert main([*down[:-6], "--scorer", config.scorer, "--output", str(folder / "b.jsonl")]) == 2
    assert "could not be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": None}, "`tokenizer` changes nothing without `server`"),
        ({"dtype": "bfloat16"}, "`dtype` changes nothing without a model that is loaded here"),
        ({"reward_server": "http://a"}, "`reward_server` changes nothing without `scorer: reward`"),
        ({"generation": {"max_time": 3}}, "`max_time` is 3"),
        ({"server_timeout": "x"}, "`server_timeout` is 'x'"),
    ],
)
def test_settings_of_jobs_are_checked(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        job(folder, **{"url": "http://a", **changes} if "server" not in changes else {"url": None})


def test_a_job_in_process_cannot_be_resumed_on_a_server(folder, url):
    build_causal().save_pretrained(folder / "lm")
    tokenizer_of("bytes").save_pretrained(folder / "lm")
    rain = {**QUICK, "max_batch_size": 2, "edge_lengths": [1, 2]}
    local = {"server": None, "tokenizer": None, "model": str(folder / "lm"), "rain": rain}
    run_rain_job(job(folder, url, **local))
    with pytest.raises(ValueError, match=r"was made with other settings .*is_served"):
        run_rain_job(job(folder, url, model=str(folder / "lm")))


def test_stop_strings_are_read_once_for_all_prompts_of_a_job(folder, url, monkeypatch):
    made = []

    class Criterion(served_generation.StopStringCriteria):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(served_generation, "StopStringCriteria", Criterion)
    run_rain_job(job(folder, url, generation={"max_new_tokens": 5, "stop_strings": ["e", "zz"]}))
    assert len(made) == 1 and len(answers(folder)) == 5


def test_iterations_are_counted_while_searches_run(folder, url, monkeypatch):
    shown = []

    def show(self, tokens, iterations):
        shown.append((tokens, iterations))

    monkeypatch.setattr(job_output.JobOutput, "show", show)
    run_rain_job(job(folder, url, rain={**QUICK, "max_batch_size": 1}))
    rows = [json.loads(line) for line in (folder / "out.jsonl").open()]
    assert shown[-1] == (sum(len(row["tokens"]) for row in rows), sum(row["stats"]["iterations"] for row in rows))
    assert shown == sorted(shown)
