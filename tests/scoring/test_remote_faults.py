"""Servers of rewards that are busy, lost or broken, and requests that they refuse."""

from __future__ import annotations

import pytest
from support.answering import Answering
from support.models import build_student
from support.serving import served
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike
from support.vllm_server import served as vllm_served

from hf_interdistill import RemoteRewardScorer, RewardScorer
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.utils import servers


@pytest.fixture(scope="module")
def url():
    with served(RewardApp(RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=4), "tiny")) as url:
        yield url


@pytest.fixture
def waits(monkeypatch):
    """Seconds between tries, which pass at once."""
    found = []

    async def pause(seconds):
        found.append(seconds)

    monkeypatch.setattr(servers, "_pause", pause)
    return found


def test_a_busy_or_lost_server_is_asked_again(waits):
    busy = (503, {"Retry-After": "7"}, {"error": {"message": "full"}})
    with Answering(busy, ("drop", {}, b""), (502, {}, b"gateway"), (500, {}, b"oh"), (200, {}, b"{")) as server:
        assert RemoteRewardScorer(server.url)([None], ["5"]) == [5.0]
        assert len(server.bodies) == 6
    assert waits[0] == 7.0 and 0.5 <= waits[1] <= 1 and 1 <= waits[2] <= 2 and 4 <= waits[4] <= 8


def test_a_server_cannot_ask_for_longer_waits_than_the_time_limit(waits):
    with Answering((429, {"Retry-After": "900"}, b"")) as server:
        assert RemoteRewardScorer(server.url, timeout=20)([None], ["5"]) == [5.0]
    assert waits == [20.0]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            (400, {}, {"error": {"message": "Row 1: it is bad."}}),
            ValueError,
            r"^Row 1: .*/score refused .*\(400\): it is bad",
        ),
        ((401, {}, {"error": {"message": "The token is wrong."}}), PermissionError, r"\(401\): The token"),
        ((404, {}, b"Not Found"), ValueError, r"\(404\): Not Found"),
        ((200, {}, {"rewards": [1.0]}), ValueError, "2 rows were sent, and .* without a reward for each"),
        ((200, {}, {"rewards": [1.0, None]}), ValueError, "must give a finite number"),
        ((200, {}, b'{"rewards": [1.0, NaN]}'), ValueError, "must give a finite number"),
        ((200, {}, {"scores": [1.0, 2.0]}), ValueError, "without a reward for each"),
        ((200, {}, [1.0, 2.0]), ValueError, "without a reward for each"),
    ],
)
def test_what_cannot_be_mended_is_an_error_at_once(answer, error, message):
    with Answering(answer) as server:
        with pytest.raises(error, match=message):
            RemoteRewardScorer(server.url)([None] * 2, ["1", "2"])
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((503, {}, {"error": {"message": "full"}}), ConnectionError, r"failed \(503: full\)"),
        ((500, {}, {"error": "it broke"}), ConnectionError, r"failed \(500: it broke\)"),
        (("drop", {}, b""), ConnectionError, "could not be reached, or cut the connection"),
        ((200, {}, b"<html>"), ValueError, "what is not JSON"),
    ],
)
def test_a_server_that_stays_so_is_an_error(waits, answer, error, message):
    with Answering(*[answer] * 9) as server:
        with pytest.raises(error, match=message + ".* /score was tried 3 times"):
            RemoteRewardScorer(server.url, retries=2)([None], ["1"])
        assert len(server.bodies) == 3
    with pytest.raises(ConnectionError, match=r"could not be reached.* tried 2 times.*correct the address"):
        RemoteRewardScorer(server.url, retries=1)([None], ["1"])


def test_a_refused_row_keeps_the_message_of_the_scorer(url):
    with pytest.raises(ValueError, match="Row 1: The completion holds 3"):
        RemoteRewardScorer(url)([None] * 2, ["a", 3])
    with pytest.raises(ValueError, match=r"^Row 2: The completion holds 3"):
        RemoteRewardScorer(url, batch_size=2)([None] * 3, ["a", "b", 3])
    long = "word " * 9000
    with pytest.raises(ValueError, match=r"^Row 2: .*A text has .* more than max_length"):
        RemoteRewardScorer(url, batch_size=2)([None] * 3, ["a", "b", long])
    with pytest.raises(ValueError, match="more than the server's limit"):
        RemoteRewardScorer(url, api="classify", tokenizer=tokenizer_of("bytes"))([None], [long])
    with pytest.raises(TypeError, match="`completions` is 'a'"):
        RemoteRewardScorer(url)([None], "a")
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        RemoteRewardScorer(url)([None], ["a", "b"])
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        RemoteRewardScorer(url)([None], [[{"role": "user", "content": "a", "more": object()}]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "must be an address such as"),
        ({"url": "http://127.0.0.1:99999"}, "must be an address such as"),
        ({"url": "http://[::1"}, "must be an address such as"),
        ({"api": "vllm"}, "must be one of interdistill, classify"),
        ({"api": "classify"}, "give the reward model's tokenizer"),
        ({"tokenizer": "a"}, "otherwise leave it out"),
        ({"max_length": 9}, "its own `--max_length` holds"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "`retries` is -1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RemoteRewardScorer(**{"url": "http://127.0.0.1:8000", **options})


def test_another_kind_of_server_is_named():
    backend = VllmLike(None, tokenizer_of("bytes"), "rm", reward_model=build_student())
    with vllm_served(backend) as url, pytest.raises(ValueError, match=r"of vllm\. .*set `api` to 'classify'"):
        RemoteRewardScorer(url)([None], ["a"])
    assert [path for path, _ in backend.requests] == ["/v1/models"]
    with Answering() as server:
        server.models = {"data": [{"id": "a"}, {"id": "b"}]}
        with pytest.raises(ValueError, match="has no single model; it serves 'a', 'b'"):
            RemoteRewardScorer(server.url)([None], ["1"])
        with pytest.raises(ValueError, match="is a server of another kind"):
            RemoteRewardScorer(server.url, model="a")([None], ["1"])
        server.models = {"status": "ok"}
        with pytest.raises(ValueError, match="lists no models, so this is not a model server"):
            RemoteRewardScorer(server.url)([None], ["1"])
        assert server.bodies == []


@pytest.mark.parametrize("api", ["interdistill", "classify"])
def test_another_model_is_refused_before_texts_are_sent(url, api):
    options = {"tokenizer": tokenizer_of("bytes")} if api == "classify" else {}
    with pytest.raises(ValueError, match="has no model 'other'; it serves 'tiny'"):
        RemoteRewardScorer(url, api=api, model="other", **options).check()


def test_the_token_of_the_environment_is_that_of_the_kind_of_server(monkeypatch):
    monkeypatch.setenv("INTERDISTILL_TOKEN", "ours")
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    with Answering() as server:
        RemoteRewardScorer(server.url)([None], ["1"])
        RemoteRewardScorer(server.url, token="given")([None], ["1"])
        assert [each["Authorization"] for each in server.headers] == ["Bearer ours", "Bearer given"]
    backend = VllmLike(None, tokenizer_of("bytes"), "rm", reward_model=build_student())
    with vllm_served(backend) as url:
        RemoteRewardScorer(url, api="classify", tokenizer=tokenizer_of("bytes"))([None], ["a"])
    assert set(backend.keys) == {"Bearer theirs"}
