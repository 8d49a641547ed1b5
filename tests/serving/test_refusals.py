"""Bad requests: the status says whose fault it is, the message what to do, and the next request is answered."""

from __future__ import annotations

import json
import math
import re
import threading
import time

import pytest
import requests
import torch
from starlette.testclient import TestClient
from support.serving import served

from hf_interdistill.serving.app import Limits, RewardApp

GOOD = {"completions": ["A text."]}
OK = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/score", [], "must be a JSON object"),
        ("/score", {}, "no `completions`"),
        ("/score", {"completion": ["a"]}, "Unknown key `completion`; did you mean `completions`"),
        ("/score", {"completions": "a"}, r"`completions` is 'a' \(str\), but must be a list"),
        ("/score", {"completions": {"a": 1}}, "must be a list"),
        ("/score", {"prompts": ["a"], "completions": ["a", "b"]}, "1 prompts and 2 completions"),
        ("/score", {"completions": ["a", 3]}, "Row 1: The completion holds 3"),
        ("/score", {"completions": ["a", None]}, "Row 1: .*It is missing"),
        ("/score", {"completions": [[]]}, "Row 0: The completion is an empty conversation"),
        ("/score", {"prompts": [[OK]], "completions": [[{"role": "robot", "content": "a"}]]}, "unknown role"),
        ("/score", {"prompts": ["a"], "completions": [[OK]]}, "Row 0: "),
        ("/score", {"completions": ["half \ud800"]}, "Row 0: A text holds half a character"),
        ("/score", {"completions": ["a"], "tools": []}, "1 completions and 0 `tools`"),
        ("/score", {"completions": [[OK]], "tools": [3]}, "Row 0: `tools` is 3"),
        ("/score", {"completions": [[OK]], "chat_template_kwargs": [{"chat_template": "x"}]}, "may not have"),
        ("/score", {"completions": [[OK]], "chat_template_kwargs": ['{"chat_template": "x"}']}, "may not have"),
        ("/score", {"completions": [[OK]], "chat_template_kwargs": ["{"]}, "Row 0: .*is not JSON"),
        ("/score", {"completions": ["word " * 200]}, "Row 0: .*max_length=100|more than max_length=100"),
        ("/get_reward", {"queries": ["a"]}, "no `query`.*Is `queries` meant"),
        ("/get_reward", {"query": "a"}, "must be a list"),
        ("/get_reward", {"query": ["a", ""]}, "Row 1: `query` holds ''"),
        ("/get_reward", {"query": ["a", ["b"]]}, "Row 1: "),
        ("/get_reward", {"query": ["half \ud800"]}, "half a character"),
        ("/remote_rm", {"prompt": "a"}, "no `response`"),
        ("/remote_rm", {"prompt": [{"from": "human", "value": "a"}], "response": "b"}, "ShareGPT"),
        ("/classify", {"model": "tiny"}, "no `input`"),
        ("/classify", {"input": []}, "with at least one"),
        ("/classify", {"input": [[]]}, "at least one"),
        ("/classify", {"input": ""}, "Row 0: The text is empty"),
        ("/classify", {"input": [5, -1]}, "whole numbers of 0 to 899"),
        ("/classify", {"input": [[5, 900]]}, "Row 0: .*whole numbers of 0 to 899"),
        ("/classify", {"input": [[5, True]]}, "whole numbers"),
        ("/classify", {"input": ["a", "half \ud800"]}, "Row 1: .*half a character"),
        ("/classify", {"input": "a", "use_activation": True}, "The answer is the reward itself"),
        ("/classify", {"input": "a", "add_special_tokens": "no"}, "must be true or false"),
        ("/classify", {"messages": "a"}, "must be a list of messages"),
        ("/classify", {"messages": [OK], "add_generation_prompt": True}, "finished answer"),
        ("/classify", {"messages": [OK], "chat_template": "x"}, "may not have"),
        ("/classify", {"messages": [OK], "chat_template_kwargs": {"chat_template": "x"}}, "may not have"),
        ("/classify", {"input": [5] * 101}, "101 tokens, more than max_length=100"),
        ("/pooling", {"input": "a", "task": "embed"}, "can only `classify`"),
    ],
)
def test_a_bad_body_is_a_400(scorer, path, body, message):
    scorer.max_length = 100
    with TestClient(RewardApp(scorer, "tiny").asgi) as client:
        answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["code"] == 400
        assert re.search(message, error["message"]), error["message"]
        assert client.post("/score", json=GOOD).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"completions": [1e999'])
def test_what_is_no_json_is_a_400(client, content):
    answer = client.post("/score", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "cannot be read as JSON" in answer.json()["error"]["message"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/score", r'{"completions": ["a"], "\ud800": 1}', r"Unknown key `\\ud800`; did you mean"),
        ("/score", r'{"completions": [[{"role": "\ud800", "content": "a"}]]}', "unknown role '.*ud800'"),
        ("/score", r'{"completions": [[{"role": "user", "content": "\ud800"}]]}', "half a character"),
        ("/get_reward", r'{"qu\ud800ry": ["a"]}', r"Is `qu\\ud800ry` meant as `query`"),
        ("/classify", r'{"inp\ud800t": "a"}', r"Is `inp\\ud800t` meant as `input`"),
        ("/get_reward", '{"query": ["a"], "labels": [NaN]}', "JSON: it holds NaN"),
        ("/score", '{"completions": [Infinity]}', "JSON: it holds Infinity"),
        ("/score", '{"completions": ["a"], "tools": -Infinity}', "JSON: it holds -Infinity"),
        ("/score", '{"completions": ' + nested(950) + "}", "nested too deeply"),
        ("/score", '{"completions": ["a"], "tools": [' + nested(900) + "]}", "nested too deeply|must be"),
        ("/classify", '{"messages": ' + nested(950) + "}", "nested too deeply"),
        ("/classify", '{"input": ["5"], "add_special_tokens": "1"}', "must be true or false"),
        ("/classify", '{"input": [["5", "6"]]}', "whole numbers of 0 to 899"),
        ("/classify", '{"input": [' + "1" * 400 + "]}", "whole numbers of 0 to 899"),
        ("/classify", '{"input": [' + "1" * 5000 + "]}", "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_written_in_an_answer_is_a_400_that_is_counted(client, path, content, message):
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert re.search(message, answer.json()["error"]["message"]), answer.text
    counted = f'interdistill_requests_total{{endpoint="{path}",status="400"}} 1.0'
    assert counted in client.get("/metrics").text
    assert client.post("/score", json=GOOD).status_code == 200


def test_other_faults_of_clients(client):
    assert client.post("/score", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.get("/score").status_code == 405
    missing = client.post("/v1/chat/completions", json={})
    assert missing.status_code == 404 and missing.json()["error"]["code"] == 404
    other = client.post("/score", json={**GOOD, "model": "large"})
    assert other.status_code == 404 and "it is 'tiny'" in other.json()["error"]["message"]
    rows = client.post("/score", json={"completions": ["a"] * 65})
    assert rows.status_code == 413 and "65 rows, more than the 64" in rows.json()["error"]["message"]


def test_a_large_body_is_refused_before_it_is_whole(scorer):
    with TestClient(RewardApp(scorer, "tiny", limits=Limits(max_body=1000)).asgi) as client:
        sent = []

        def body():
            for _ in range(100):
                sent.append(1)
                yield b" " * 500

        answer = client.post("/score", content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]["message"]
        assert client.post("/score", json=GOOD).status_code == 200


def test_a_token_opens_all_but_the_health(scorer):
    with TestClient(RewardApp(scorer, "tiny", token="secret-").asgi) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for given in (None, "Bearer", "Bearer wrong", "Basic secret-", "secret-", "Bearer secret-x", "Bearer \xe9"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            answer = client.post("/score", json=GOOD, headers=headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", given
            assert client.get("/metrics", headers=headers).status_code == 401
        right = {"Authorization": "Bearer secret-"}
        assert client.post("/score", json=GOOD, headers=right).status_code == 200
        assert client.get("/metrics", headers=right).status_code == 200


class Blocked:
    """Holds a scorer's model until it is let go."""

    def __init__(self, scorer):
        self.entered, self.go, self.read = threading.Event(), threading.Event(), scorer.score_ids
        scorer.score_ids = self.score_ids

    def score_ids(self, rows):
        self.entered.set()
        assert self.go.wait(30)
        return self.read(rows)


def test_a_full_queue_is_a_503_that_says_when(scorer):
    app = RewardApp(scorer, "tiny", limits=Limits(max_queue=2))
    blocked = Blocked(scorer)
    with TestClient(app.asgi) as client:
        answers = []
        waiting = threading.Thread(
            target=lambda: answers.append(client.post("/score", json={"completions": ["a", "b"]}))
        )
        waiting.start()
        assert blocked.entered.wait(30)
        refused = client.post("/score", json=GOOD)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        assert "2 rows wait, and 2 may" in refused.json()["error"]["message"]
        blocked.go.set()
        waiting.join(30)
        assert answers[0].status_code == 200
        assert client.post("/score", json=GOOD).status_code == 200


def test_a_request_that_takes_too_long_is_a_504_and_leaves_the_queue(scorer):
    app = RewardApp(scorer, "tiny", limits=Limits(max_queue=2, timeout=0.2))
    blocked = Blocked(scorer)
    with TestClient(app.asgi) as client:
        late = client.post("/score", json={"completions": ["a", "b"]})
        assert late.status_code == 504 and "more than 0.2 s" in late.json()["error"]["message"]
        blocked.go.set()
        assert client.post("/score", json={"completions": ["a", "b"]}).status_code == 200


def test_rows_of_a_client_that_left_leave_the_queue(scorer):
    app = RewardApp(scorer, "tiny", limits=Limits(max_queue=2))
    blocked = Blocked(scorer)
    with served(app) as url:
        with pytest.raises(requests.Timeout):
            requests.post(f"{url}/score", json={"completions": ["a", "b"]}, timeout=0.5)
        end = time.monotonic() + 30
        while app.queue._held:
            assert time.monotonic() < end
            time.sleep(0.01)
        blocked.go.set()
        assert requests.post(f"{url}/score", json={"completions": ["a", "b"]}, timeout=30).status_code == 200


def test_a_row_that_breaks_the_model_does_not_take_others_with_it(scorer, twin):
    read = scorer._read

    def broken(rows, *args):
        if any(scorer.tokenizer.decode(row).startswith("crash") for row in rows):
            raise RuntimeError("out of memory")
        rewards = read(rows, *args)
        return torch.where(torch.tensor([row == short for row in rows]), torch.tensor(math.nan), rewards)

    app = RewardApp(scorer, "tiny")
    scorer._read = broken
    blocked = Blocked(scorer)  # so that all of them are read in one batch
    short = scorer.tokenizer.encode("a b c")[:3]
    with TestClient(app.asgi) as client:
        answers = {}
        posts = {
            "first": ("/score", {"completions": ["first"]}),
            "crash": ("/score", {"completions": ["crash here"]}),
            "good": ("/score", {"completions": ["good text", "another"]}),
            "nan": ("/classify", {"input": [short]}),
        }

        def post(name):
            answers[name] = client.post(posts[name][0], json=posts[name][1])

        threads = [threading.Thread(target=post, args=(name,)) for name in posts]
        threads[0].start()
        assert blocked.entered.wait(30)
        for thread in threads[1:]:
            thread.start()
        while len(app.queue._requests) < 3:
            pass
        blocked.go.set()
        for thread in threads:
            thread.join(30)
    assert answers["good"].json()["rewards"] == pytest.approx(twin([None] * 2, ["good text", "another"]), abs=1e-5)
    assert answers["crash"].status_code == 500 and "out of memory" in answers["crash"].json()["error"]["message"]
    assert answers["nan"].status_code == 500 and "reward nan for row 0" in answers["nan"].json()["error"]["message"]
    assert answers["first"].status_code == 200
