"""Rewards from vLLM's `/classify`: token ids, its limits and its failures."""

from __future__ import annotations

import pytest
from support.datasets import read_rows
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, served

from hf_interdistill import RemoteRewardScorer, RewardScorer
from hf_interdistill.utils import servers
from hf_interdistill.utils.servers import ServerError

NAME = "models/rm"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


@pytest.fixture(scope="module")
def reward_model():
    return build_student()


@pytest.fixture
def backend(reward_model):
    return VllmLike(None, tokenizer_of("bytes"), NAME, reward_model=reward_model)


@pytest.fixture
def url(backend):
    with served(backend) as address:
        yield address


@pytest.fixture
def local(reward_model):
    return RewardScorer(reward_model, tokenizer_of("bytes"))


@pytest.fixture
def texts():
    rows = read_rows()[:5]
    return [row["prompt"] for row in rows], [row["chosen"] for row in rows]


def remote_of(url, **settings):
    settings = {"api": "classify", "retries": 2, "model": NAME, **settings}
    return RemoteRewardScorer(url, tokenizer=tokenizer_of("bytes"), **settings)


def test_rewards_are_those_in_process(url, backend, local, texts):
    remote = remote_of(url, batch_size=2)
    prompts, completions = texts
    assert remote(prompts, completions) == pytest.approx(local(prompts, completions), abs=1e-5)
    assert (remote.last_token_counts, remote.last_forward_passes) == (local.last_token_counts, 3)
    assert remote(["Tell me. "] * 2, ["Yes.", "No"]) == pytest.approx(
        local(["Tell me. "] * 2, ["Yes.", "No"]), abs=1e-5
    )
    tools = [[{"type": "function", "function": {"name": "f", "parameters": {}}}]] * 5
    wanted = local(prompts, completions, tools=tools, trainer_state=None)
    assert remote(prompts, completions, tools=tools, trainer_state=None) == pytest.approx(wanted, abs=1e-5)
    assert remote([], []) == []
    assert remote.__name__ == "rm"
    assert all(body["use_activation"] is False for path, body in backend.requests if path == "/classify")


def test_padding_at_the_end_is_not_scored(url, backend):
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = tokenizer.eos_token
    RemoteRewardScorer(url, api="classify", tokenizer=tokenizer).score_ids([[5, 6, tokenizer.pad_token_id]])
    assert backend.requests[-1][1]["input"] == [[5, 6]]


def test_errors_name_the_row_or_the_limit(url, backend):
    with pytest.raises(ValueError, match=r"Row 1: A text has .* more than max_length=12"):
        remote_of(url, max_length=12)(["a", "a" * 90], ["b", "c"])
    backend.max_length = 20
    with pytest.raises(ValueError, match=r"more than the server's limit \(`--max-model-len`\) of 20"):
        remote_of(url)(["a" * 90], ["c"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, "out of memory"), r"failed \(500: out of memory\); /classify was tried 3 times"),
        ((200, {"data": []}), "gave no rewards: 1 texts were sent, but 0 answers"),
        ((200, {"data": [{"index": 0, "probs": [0.1, 0.9]}]}), "a reward model answers each text with one number"),
        ((404, {"detail": "Not Found"}), r"/classify refused a request \(404\): Not Found|Not Found"),
        ("cut", "cut the connection"),
    ],
)
def test_servers_that_fail_are_reported(url, backend, answer, message):
    backend.fault = lambda path, body: answer if path == "/classify" else None
    with pytest.raises(ServerError, match=message):
        remote_of(url)(["a"], ["b"])


def test_another_model_or_vocabulary_is_refused(url):
    with pytest.raises(ValueError, match="no model 'other'; it serves 'models/rm'"):
        remote_of(url, model="other").check()
    with pytest.raises(ValueError, match="The tokenizer is not that of 'models/rm'"):
        RemoteRewardScorer(url, api="classify", tokenizer=tokenizer_of("metaspace")).check()
