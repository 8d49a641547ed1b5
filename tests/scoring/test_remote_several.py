"""Rewards from several servers: those of one, whichever answers, and whichever fails."""

from __future__ import annotations

import copy
import json
import re
from contextlib import ExitStack

import pytest
from support.answering import Answering
from support.datasets import read_rows
from support.models import build_student
from support.serving import served as served_by_us
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, all_served, served, switchable

from hf_interdistill import RemoteRewardScorer, RewardEnsemble, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.utils import servers
from hf_interdistill.utils.server_pool import NoServerLeftError

DOWN = "http://127.0.0.1:9"
TEXTS = [f"answer {number} " * (1 + number % 3) for number in range(24)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


@pytest.fixture(scope="module")
def reward_model():
    return build_student()


@pytest.fixture(scope="module")
def wanted(reward_model):
    return RewardScorer(reward_model, tokenizer_of("bytes"))([None] * len(TEXTS), TEXTS)


def backend_of(model, name="rm", **options):
    return VllmLike(None, tokenizer_of("bytes"), name, reward_model=model, **options)


def scorer_of(urls, **settings):
    settings = {"api": "classify", "tokenizer": tokenizer_of("bytes"), "batch_size": 2, "retries": 1, **settings}
    return RemoteRewardScorer(urls, **settings)


def score(urls, **settings):
    return scorer_of(urls, **settings)([None] * len(TEXTS), TEXTS)


def texts_of(backend):
    """The rows that were scored, the test text left out."""
    return [tuple(ids) for path, body in backend.requests if path == "/classify" for ids in body["input"]][1:]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]


def test_rewards_are_those_of_one_server(reward_model, wanted, caplog):
    backends = [backend_of(reward_model) for _ in range(3)]
    with all_served(*backends) as urls:
        assert score(urls) == pytest.approx(wanted, abs=1e-5)
    counts = [len(texts_of(each)) for each in backends]
    assert sum(counts) == len(TEXTS) and min(counts) > 0
    assert warnings_of(caplog) == []


def test_rewards_of_our_own_servers(reward_model, wanted, tmp_path):
    reward_model.save_pretrained(tmp_path)
    tokenizer_of("bytes").save_pretrained(tmp_path)
    with ExitStack() as stack:
        apps = [
            RewardApp(RewardScorer(copy.deepcopy(reward_model), tokenizer_of("bytes")), name) for name in ("rm", "rm")
        ]
        urls = [stack.enter_context(served_by_us(app)) for app in apps]
        scorer = RemoteRewardScorer(",".join(urls), batch_size=2)
        assert scorer([None] * len(TEXTS), TEXTS) == pytest.approx(wanted, abs=1e-5)
        assert scorer.__name__ == urls[0].removeprefix("http://")
        ensemble = RewardEnsemble.from_pretrained([",".join(urls), str(tmp_path)], aggregation="mean")
        assert ensemble([None] * 2, TEXTS[:2]) == pytest.approx(wanted[:2], abs=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_down_is_left_out(reward_model, wanted, place, caplog):
    with served(backend_of(reward_model)) as url:
        urls = [url]
        urls.insert(place, DOWN)
        assert score(urls) == pytest.approx(wanted, abs=1e-5)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"The server {DOWN} is left out") and warning.endswith(f"continue on {url}.")


@pytest.mark.parametrize("answer", [(500, "dead"), "cut", (404, "gone"), (200, {"data": []}), (200, "{no")])
def test_one_that_dies_loses_nothing_and_repeats_nothing(reward_model, wanted, answer, caplog):
    failed: list[tuple] = []
    bad = backend_of(reward_model)

    def fault(path, body):
        if path != "/classify" or len(bad.requests) < 7:
            return None
        failed.extend(tuple(ids) for ids in body["input"])
        return answer

    bad.fault = fault
    backends = backend_of(reward_model), bad
    with all_served(*backends) as urls:
        scorer = scorer_of(urls)
        assert scorer([None] * len(TEXTS), TEXTS) == pytest.approx(wanted, abs=1e-5)
    assert failed and len(warnings_of(caplog)) == 1
    answered = texts_of(backends[0]) + texts_of(bad)
    for ids in failed:
        answered.remove(ids)
    assert sorted(answered) == sorted(tuple(scorer.encode(None, text, {})) for text in TEXTS)


def test_all_that_die_end_with_every_reason(reward_model):
    backends = [backend_of(reward_model, fault=lambda path, body: (500, "dead") if path == "/classify" else None)] * 2
    good = backend_of(reward_model)
    with all_served(good, *backends) as urls:
        scorer = scorer_of(urls)
        scorer.check()
        good.fault = lambda path, body: "cut"
        with pytest.raises(
            NoServerLeftError, match=r"None of the 3 servers .*cut the connection.*500: dead.*500: dead"
        ):
            scorer([None] * len(TEXTS), TEXTS)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda model: backend_of(build_student(seed=1)), "It gives a test text the reward"),
        (lambda model: backend_of(model, "other"), "no model 'rm'; it serves 'other'"),
        (lambda model: backend_of(model, max_length=300), r"It serves ServedModel\(.*max_length=300"),
    ],
)
def test_one_with_another_model_is_left_out(reward_model, wanted, other, reason, caplog):
    backends = backend_of(reward_model), other(reward_model)
    with all_served(*backends) as urls:
        assert score(urls, model="rm") == pytest.approx(wanted, abs=1e-5)
    assert not texts_of(backends[1])
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"The server {urls[1]} is left out") and re.search(reason, warning)


def test_servers_of_different_names_are_not_mixed(reward_model, wanted, caplog):
    """Each has one model, so that no name need be given."""
    backends = backend_of(reward_model), backend_of(reward_model, "other")
    with all_served(*backends) as urls:
        assert score(urls) == pytest.approx(wanted, abs=1e-5)
    assert not texts_of(backends[1]) and len(warnings_of(caplog)) == 1


def test_a_request_that_is_refused_is_no_fault_of_the_server(caplog):
    with Answering() as first, Answering((200, {}, {"rewards": [1.0]}), (400, {}, {"error": "bad row"})) as second:
        first.answers = [(200, {}, {"rewards": [1.0]}), (400, {}, {"error": "bad row"})]
        scorer = RemoteRewardScorer([first.url, second.url])
        with pytest.raises(ValueError, match=r"\(400\): bad row"):
            scorer([None], ["1"])
        first.answers, second.answers = [], []  # the refusal of the one that was not asked
        assert scorer([None] * 2, ["3", "4"]) == [3.0, 4.0]
        assert len(scorer.servers.left) == 2
    assert warnings_of(caplog) == []


@pytest.fixture
def files(tmp_path):
    rows = read_rows()[:6]
    lines = [json.dumps({key: row[key] for key in ("prompt", "chosen", "rejected")}) + "\n" for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    tokenizer_of("bytes").save_pretrained(tmp_path / "tokenizer")
    row = {"prompt": "Tell me", "chosen": "Yes, gladly.", "rejected": "No", "id": 1, "subset": "alpacaeval-easy"}
    (tmp_path / "bench.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_commands_take_lists_and_resume_on_others(files, reward_model, capsys):
    """`score` in chunks of 32 requests; `eval`, where a list is one address for each model, with commas."""
    rows = lines(files / "pairs.jsonl") * 12
    (files / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--reward_api", "classify", "--reward_tokenizer", str(files / "tokenizer"), "--model", "rm"]
    words = ["score", *common, "--input", str(files / "many.jsonl"), "--batch_size", "1", "--output"]
    backends = [backend_of(reward_model) for _ in range(2)]
    with all_served(*backends) as urls:
        assert main([*words, str(files / "whole.jsonl"), "--reward_server", *urls]) == 0
        assert min(len(texts_of(each)) for each in backends) > 10
    faulty = [backend_of(reward_model) for _ in range(2)]
    for each in faulty:
        each.fault = lambda path, body, own=each: (500, "dead") if len(own.requests) > 50 else None
    with all_served(*faulty) as urls:
        assert main([*words, str(files / "out.jsonl"), "--reward_server", ",".join(urls)]) == 2
    assert "None of the 2 servers can be used" in capsys.readouterr().err
    kept = len(lines(files / "out.jsonl"))
    assert 0 < kept < len(rows)
    last = backend_of(reward_model)
    with served(last) as url:
        assert main([*words, str(files / "out.jsonl"), "--reward_server", url]) == 0
        both = ["--reward_server", f"{url},{DOWN}", "--output", str(files / "eval")]
        assert main(["eval", *common, "--benchmark", "reward_bench", "--data", str(files / "bench.jsonl"), *both]) == 0
    assert [row["reward_chosen"] for row in lines(files / "out.jsonl")] == pytest.approx(
        [row["reward_chosen"] for row in lines(files / "whole.jsonl")], abs=1e-5
    )


@pytest.mark.parametrize("count", [1, 2])
def test_servers_that_are_back_are_used_by_the_next_call(reward_model, wanted, count):
    """And a call while all are down ends: it does not wait for a place on none."""
    faults, switches = zip(*(switchable() for _ in range(count)), strict=True)
    backends = [backend_of(reward_model, fault=fault) for fault in faults]
    with all_served(*backends) as urls:
        scorer = scorer_of(urls)
        assert scorer([None] * len(TEXTS), TEXTS) == pytest.approx(wanted, abs=1e-5)
        for switch in switches:
            switch(True)
        for _ in range(3):
            with pytest.raises(ConnectionError, match="500: down"):
                scorer([None] * len(TEXTS), TEXTS)
        for switch in switches:
            switch(False)
        for each in backends:
            each.requests.clear()
        assert scorer([None] * len(TEXTS), TEXTS) == pytest.approx(wanted, abs=1e-5)
        assert all(texts_of(each) for each in backends)


def test_all_that_fail_within_a_call_leave_no_call_waiting(reward_model, wanted):
    scorer = scorer_of(["http://127.0.0.1:9", "http://127.0.0.1:10"])
    for _ in range(2):
        with pytest.raises(NoServerLeftError):
            scorer([None] * len(TEXTS), TEXTS)
