"""RAIN over several servers: the answers of one server, whichever answers, and whichever fails."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest
from support.rain import build_causal, likes_short_words, quick_config, tree_shape
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, all_served, dying_after, served, slow, switchable

from hf_interdistill import RainClient
from hf_interdistill.cli import main
from hf_interdistill.rain.api.job_config import RainJobConfig
from hf_interdistill.rain.api.jobs import run_rain_job
from hf_interdistill.rain.scorers.weighted import WeightedScorer
from hf_interdistill.utils import servers
from hf_interdistill.utils.async_calls import run
from hf_interdistill.utils.server_pool import ModelServers, NoServerLeftError
from hf_interdistill.utils.servers import ServerError

PROMPTS = ["How do I bake bread?", "Tell me", "Why is the sky blue?", "What is a piano?", "Say something", "Run!"]
DOWN = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Waits between tries are cut."""
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


def client_of(urls, tokenizer, scorer=likes_short_words, **settings):
    config = quick_config(edge_lengths=(1, 2), **settings.pop("config", {}))
    return RainClient(urls, "lm", tokenizer, config, scorer, **{"retries": 1, **settings})


def search(urls, tokenizer, scorer=likes_short_words, prompts=PROMPTS, **settings):
    return client_of(urls, tokenizer, scorer, **settings).generate(prompts, max_new_tokens=4)


def work_of(backend) -> Counter:
    """What was asked for in searches, checks left out: prompts, and all else of the requests."""
    bodies = [body for path, body in backend.requests if path == "/v1/completions"]
    starts = [tokenizer_of("bytes")(prompt)["input_ids"] for prompt in PROMPTS]
    return Counter(
        json.dumps(body, sort_keys=True)
        for body in bodies
        if any(body["prompt"][: len(start)] == start for start in starts)
    )


@pytest.fixture(scope="module")
def plain(shared_model):
    """Trees by one server, and what it was asked for."""
    backend = VllmLike(shared_model, tokenizer_of("bytes"))
    with served(backend) as url:
        return [tree_shape(record.tree) for record in search(url, tokenizer_of("bytes"))], work_of(backend)


def shapes(records):
    return [tree_shape(record.tree) for record in records]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]


@pytest.mark.parametrize("separator", [None, " , "])
def test_answers_are_those_of_one_server(model, tokenizer, plain, separator, caplog):
    backends = [VllmLike(model, tokenizer) for _ in range(3)]
    with all_served(*backends) as urls:
        found = search(urls if separator is None else separator.join(urls), tokenizer)
    assert shapes(found) == plain[0]
    assert sum(map(work_of, backends), Counter()) == plain[1]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("scorer", ["function", "self"])
def test_a_prompt_stays_with_its_server_and_prompts_are_spread(model, tokenizer, scorer):
    backends = [VllmLike(model, tokenizer) for _ in range(3)]
    config = {} if scorer == "function" else {"judge": "harmlessness_short", "judge_vote": "probability"}
    with all_served(*backends) as urls:
        search(urls, tokenizer, likes_short_words if scorer == "function" else "self", config=config)
    places = {prompt: set() for prompt in PROMPTS}
    for number, backend in enumerate(backends):
        for path, body in backend.requests:
            if path == "/v1/completions":
                text = tokenizer.decode(body["prompt"])
                for prompt in PROMPTS:
                    if text.startswith(prompt) or ("allowed_token_ids" in body and prompt in text):
                        places[prompt].add(number)
    assert all(len(each) == 1 for each in places.values()), places
    assert Counter(number for each in places.values() for number in each) == {0: 2, 1: 2, 2: 2}
    judged = [sum("allowed_token_ids" in body for _, body in backend.requests) for backend in backends]
    assert all(count > 1 for count in judged) == (scorer == "self"), judged


def test_processes_with_few_prompts_do_not_all_take_the_first_server():
    chosen = {ModelServers(["http://a", "http://b", "http://c"]).place(None).url for _ in range(60)}
    assert chosen == {"http://a", "http://b", "http://c"}


def test_a_judge_within_other_scorers_asks_them_too(model, tokenizer):
    backends = [VllmLike(model, tokenizer, max_length=2048) for _ in range(2)]
    scorer = WeightedScorer([("self", 1.0), (likes_short_words, 1.0)])
    with all_served(*backends) as urls:
        found = search(urls, tokenizer, scorer, prompts=PROMPTS[:2])
        assert shapes(found) == shapes(search(urls[0], tokenizer, scorer, prompts=PROMPTS[:2]))
    assert all(any("allowed_token_ids" in body for _, body in each.requests[20:]) for each in backends)


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_down_at_the_start_is_left_out(model, tokenizer, plain, place, caplog):
    backend = VllmLike(model, tokenizer)
    with served(backend) as url:
        urls = [url]
        urls.insert(place, DOWN)
        client = client_of(urls, tokenizer)
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        client.generate(PROMPTS[:1], max_new_tokens=2)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"The server {DOWN} is left out from now on: ") and "could not be reached" in warning
    assert warning.endswith(f"continue on {url}.") and "run the same command" not in warning


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, "dead"), r"failed \(500: dead\)"),
        ("cut", "cut the connection"),
        ((404, {"error": {"message": "The model `lm` does not exist."}}), r"refused a request \(404\): .*not exist"),
        ((401, "who?"), r"\(401\): who"),
        ((200, {"choices": []}), "sent 0"),
        ((200, {"choices": [{"text": "a"}]}), "without token ids"),
    ],
)
def test_one_that_dies_in_mid_job_loses_nothing_and_repeats_nothing(model, tokenizer, plain, answer, reason, caplog):
    failed: list[str] = []
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer, fault=dying_after(40, answer, failed))
    with all_served(*backends) as urls:
        found = search(urls, tokenizer)
    assert shapes(found) == plain[0]
    assert failed
    assert sum(map(work_of, backends), Counter()) - Counter(failed) == plain[1]
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"The server {urls[1]} is left out") and warning.endswith(f"continue on {urls[0]}.")
    assert re.search(reason, warning)


def test_all_that_die_end_the_job_with_every_reason(model, tokenizer, caplog):
    faults = dying_after(60, (500, "dead"), []), dying_after(40, "cut", [])
    with all_served(*(VllmLike(model, tokenizer, fault=fault) for fault in faults)) as urls:
        message = (
            r"None of the 2 servers can be used. \(1\) .*cut the connection.* \(2\) .*500: dead.*same command again"
        )
        with pytest.raises(NoServerLeftError, match=message) as caught:
            search(urls, tokenizer)
    assert all(url in str(caught.value) for url in urls)
    assert len(caught.value.records) == len(PROMPTS)
    assert len(warnings_of(caplog)) == 1


def test_no_further_tries_are_made_of_one_that_is_left_out(monkeypatch):
    server = servers.ModelServer(DOWN, retries=5)

    async def pause(seconds):
        server.is_left_out = True  # by another prompt

    async def ask():
        async with server.connected():
            await server.get("/")

    monkeypatch.setattr(servers, "_pause", pause)
    with pytest.raises(ServerError, match="was tried once"):
        run(ask())


def test_a_slow_one_gets_fewer_prompts(model, tokenizer, plain):
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer, fault=slow(0.1))
    with all_served(*backends) as urls:
        found = search(urls, tokenizer, config={"max_batch_size": 2})
    assert shapes(found) == plain[0]
    assert sum(map(work_of, backends), Counter()) == plain[1]
    counts = [sum(work_of(each).values()) for each in backends]
    assert counts[1] < counts[0] and counts[1] > 0


def test_one_that_hangs_is_left_out(model, tokenizer, plain, caplog):
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer)
    with all_served(*backends) as urls:
        client = client_of(urls, tokenizer, timeout=1.0, retries=1)
        client.check(client.resolve({}))
        backends[1].fault = lambda path, body: time.sleep(3)
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
    assert "did not answer within 1 seconds" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda model, tokenizer: VllmLike(build_causal(seed=1), tokenizer), "it has another model than that on"),
        (lambda model, tokenizer: VllmLike(model, tokenizer, "other"), "has no model 'lm'; it serves 'other'"),
        (lambda model, tokenizer: VllmLike(model, tokenizer_of("metaspace")), "The tokenizer is not that of 'lm'"),
        (lambda model, tokenizer: VllmLike(model, tokenizer, max_length=300), "--max-model-len` of 300, not of 512"),
        (lambda model, tokenizer: VllmLike(model, tokenizer, is_processed=True), "has another `--logprobs-mode`"),
        (lambda model, tokenizer: VllmLike(model, tokenizer, max_logprobs=10), "Start it with `--max-logprobs 15`"),
    ],
)
def test_one_with_another_model_is_left_out_at_the_start(model, tokenizer, plain, make, reason, caplog):
    backends = VllmLike(model, tokenizer), make(model, tokenizer)
    with all_served(*backends) as urls:
        found = search(urls, tokenizer)
    assert shapes(found) == plain[0] and not work_of(backends[1])
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"The server {urls[1]} is left out") and reason in warning


def test_all_that_cannot_be_used_are_named(model, tokenizer):
    backends = VllmLike(model, tokenizer, "a"), VllmLike(model, tokenizer, "b")
    with all_served(*backends) as urls:
        with pytest.raises(ValueError, match=r"None of the 2 .*\(1\) .*serves 'a'.* \(2\) .*serves 'b'") as caught:
            search(urls, tokenizer)
        assert not isinstance(caught.value, ServerError)
        with pytest.raises(NoServerLeftError, match=r"\(1\) .*serves 'a'.* \(2\) .*could not be reached"):
            search([urls[0], DOWN], tokenizer)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "There is no address of a server"),
        (["http://a", "localhost"], "The server is 'localhost', but must be an address"),
        (["http://a", 3], "The server is 3, but must be an address"),
        ("http://a,", "The server is '', but must be an address"),
        (["http://a:1", "http://a:1/v1/"], "The server http://a:1 is given twice"),
        ("http://a:1,http://a:1", "The server http://a:1 is given twice"),
    ],
)
def test_addresses_are_checked(tokenizer, urls, message):
    with pytest.raises(ValueError, match=message):
        client_of(urls, tokenizer)
    with pytest.raises(ValueError, match=f"`server`: {message}"):
        RainJobConfig(model="lm", prompts="a", output="b", server=urls)


@pytest.fixture
def folder(tmp_path):
    tokenizer_of("bytes").save_pretrained(tmp_path / "tokenizer")
    rows = [{"id": f"row {number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder, output, *server):
    words = ["rain", "--model", "lm", *server, "--tokenizer", str(folder / "tokenizer"), "--max_new_tokens", "4"]
    words += ["--prompts", str(folder / "prompts.jsonl"), "--output", str(folder / output), "--iterations", "6"]
    return [*words, "--scorer", "support.job_scorers:short", "--candidates", "4", "--rollout_max_tokens", "4"]


def rows_of(folder, name):
    found = [
        json.loads(line) for path in folder.glob(f"{name}*") if ".settings" not in path.name for line in path.open()
    ]
    return {row["id"]: row["tokens"] for row in found}


def test_the_command_line_takes_a_list_commas_and_yaml(folder, model, tokenizer, capsys):
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer)
    with all_served(*backends) as (a, b):
        (folder / "recipe.yaml").write_text(json.dumps({"server": [a, b]}))
        config = ["--config", str(folder / "recipe.yaml")]
        for name, words in (("a", ["--server", a]), ("ab", ["--server", a, b]), ("c", ["--server", f"{a},{b}"])):
            before = len(backends[1].requests)
            assert main(command(folder, f"{name}.jsonl", *words)) == 0
            assert (len(backends[1].requests) > before) == (name != "a")
        assert main(command(folder, "yaml.jsonl", *config)) == 0
    whole = rows_of(folder, "a.jsonl")
    assert len(whole) == len(PROMPTS)
    assert whole == rows_of(folder, "ab.jsonl") == rows_of(folder, "c.jsonl") == rows_of(folder, "yaml.jsonl")
    assert main(command(folder, "no.jsonl", "--server", a, a)) == 2
    assert "is given twice" in capsys.readouterr().err


def test_a_job_whose_servers_all_die_resumes_on_others(folder, model, tokenizer):
    def job(output, urls):
        return RainJobConfig(
            model="lm",
            server=urls,
            tokenizer=str(folder / "tokenizer"),
            prompts=str(folder / "prompts.jsonl"),
            output=str(folder / output),
            generation={"max_new_tokens": 4},
            scorer="support.job_scorers:short",
            rain={"iterations": 8, "candidates": 4, "rollout_max_tokens": 4, "max_batch_size": 2},
        )

    backend = VllmLike(model, tokenizer)
    with served(backend) as url:
        run_rain_job(job("whole.jsonl", url))
    whole, total = rows_of(folder, "whole.jsonl"), sum(work_of(backend).values())
    faults = [dying_after(round(total * share), (500, "dead"), []) for share in (0.3, 0.4)]
    dying = [VllmLike(model, tokenizer, fault=fault) for fault in faults]
    with all_served(*dying) as urls, pytest.raises(NoServerLeftError, match="run the same command again"):
        run_rain_job(job("out.jsonl", urls))
    kept = rows_of(folder, "out.jsonl")
    assert 0 < len(kept) < len(PROMPTS) and kept.items() <= whole.items()
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer)
    with all_served(*backends) as urls:
        assert run_rain_job(job("out.jsonl", urls))["searched"] == len(PROMPTS) - len(kept)
    assert rows_of(folder, "out.jsonl") == whole
    again = "\n".join(map(str, (sum(map(work_of, backends), Counter()))))
    for name in kept:
        start = json.dumps(tokenizer(PROMPTS[int(name[4:])])["input_ids"])[:-1]
        assert start not in again


def test_servers_that_are_back_are_used_by_the_next_call(model, tokenizer, plain, caplog):
    faults, switches = zip(*(switchable() for _ in range(2)), strict=True)
    backends = [VllmLike(model, tokenizer, fault=fault) for fault in faults]
    with all_served(*backends) as urls:
        client = client_of(urls, tokenizer)
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        for switch in switches:
            switch(True)
        for _ in range(2):
            with pytest.raises(NoServerLeftError, match="500: down"):
                client.generate(PROMPTS, max_new_tokens=4)
        for switch in switches:
            switch(False)
        for each in backends:
            each.requests.clear()
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
    assert all(map(work_of, backends))


def test_one_that_is_back_is_used_by_the_next_call_and_stays_out_within_one(model, tokenizer, plain, caplog):
    fault, switch = switchable()
    backends = VllmLike(model, tokenizer), VllmLike(model, tokenizer, fault=fault)
    with all_served(*backends) as urls:
        client = client_of(urls, tokenizer)
        client.check(client.resolve({}))
        switch(True)
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        switch(False)
        backends[1].requests.clear()
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        assert work_of(backends[1])
    assert len(warnings_of(caplog)) == 1


def test_one_that_comes_back_with_another_model_stays_out(model, tokenizer, plain, caplog):
    fault, switch = switchable()
    backends = VllmLike(model, tokenizer, fault=fault), VllmLike(model, tokenizer)
    with all_served(*backends) as urls:
        client = client_of(urls, tokenizer)
        client.check(client.resolve({}))
        switch(True)
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        switch(False)
        backends[0].model = build_causal(seed=1)
        backends[0].requests.clear()
        assert shapes(client.generate(PROMPTS, max_new_tokens=4)) == plain[0]
        assert not work_of(backends[0])
        tried = len(backends[0].requests)
        assert tried > 0
        client.generate(PROMPTS[:1], max_new_tokens=2)
        assert len(backends[0].requests) == tried  # for a minute
    assert len(warnings_of(caplog)) == 1
