"""`RemoteRewardScorer`: the rewards of `RewardScorer`, in their order, over HTTP that fails now and then."""

from __future__ import annotations

import json
import re
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from support.models import build_student
from support.serving import ServerProcess, served
from support.tokenizers import tokenizer_of

from hf_interdistill import RemoteRewardScorer, RewardScorer
from hf_interdistill.serving.app import Limits, RewardApp

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = [f"It is {'very ' * (n % 7)}likely number {n}." for n in range(21)]


@pytest.fixture(scope="module")
def twin():
    return RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=4)


@pytest.fixture(scope="module")
def url():
    scorer = RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=4)
    with served(RewardApp(scorer, "tiny", limits=Limits(max_queue=64))) as url:
        yield url


class Answering:
    """A server that answers requests by turns from a list: a status, headers and a body, or the rewards that it
    reads off the rows (each completion is a number)."""

    def __init__(self, *answers):
        self.answers, self.bodies, self.headers, lock = list(answers), [], [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(self.headers)
                    status, headers, answer = outer.answers.pop(0) if outer.answers else (200, {}, None)
                if status == "drop":
                    self.close_connection = True
                    return
                answer = {"rewards": [float(text) for text in body["completions"]]} if answer is None else answer
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("api", ["interdistill", "classify"])
@pytest.mark.parametrize("batch_size", [64, 4])
def test_rewards_are_those_of_the_model_in_process(url, twin, api, batch_size):
    options = {"tokenizer": tokenizer_of("bytes")} if api == "classify" else {}
    remote = RemoteRewardScorer(url, api=api, batch_size=batch_size, model="tiny", **options)
    prompts = [QUESTION] * len(ANSWERS)
    assert remote(prompts, ANSWERS) == pytest.approx(twin(prompts, ANSWERS), abs=1e-5)
    messages = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    assert remote(prompts, messages) == pytest.approx(twin(prompts, messages), abs=1e-5)
    assert remote(["Why? "] * 2, ["So.", "Because."]) == pytest.approx(
        twin(["Why? "] * 2, ["So.", "Because."]), abs=1e-5
    )
    assert remote(prompts=(), completions=(), other=[1]) == []
    assert remote.__name__ == "tiny"


def test_columns_of_the_template_travel(url, twin):
    scorer, template = (
        RewardScorer(twin.model, tokenizer_of("bytes")),
        "{{ tools | tojson if tools else '' }}{{ more }}",
    )
    scorer.tokenizer.chat_template = template + scorer.tokenizer.chat_template
    columns = {
        "tools": [[{"type": "function", "function": {"name": "look"}}]] * 3,
        "chat_template_kwargs": [{"more": "a"}, {"more": "b"}, None],
    }
    with served(RewardApp(RewardScorer(build_student("llama"), scorer.tokenizer), "tiny")) as other:
        rewards = RemoteRewardScorer(other, batch_size=2)(
            [QUESTION] * 3, ANSWERS[:3], **columns, ground_truth=[1, 2, 3]
        )
    assert rewards == pytest.approx(scorer([QUESTION] * 3, ANSWERS[:3], **columns), abs=1e-5)


def test_the_order_is_kept_whatever_the_order_of_the_answers():
    with Answering() as server:
        numbers = [str(n) for n in range(100)]
        assert RemoteRewardScorer(server.url, batch_size=3)([None] * 100, numbers) == [float(n) for n in range(100)]
        assert len(server.bodies) == 34 and all(len(body["completions"]) <= 3 for body in server.bodies)


def test_a_busy_or_lost_server_is_asked_again(monkeypatch):
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    busy = (503, {"Retry-After": "7"}, {"error": {"message": "full"}})
    with Answering(busy, ("drop", {}, b""), (502, {}, b"gateway")) as server:
        assert RemoteRewardScorer(server.url)([None], ["5"]) == [5.0]
        assert len(server.bodies) == 4
    assert waits[0] == 7.0 and 0 < waits[-1] < 7


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, {}, {"error": {"message": "Row 1: it is bad."}}), ValueError, "status 400: Row 1: it is bad"),
        ((401, {}, {"error": {"message": "The token is wrong."}}), PermissionError, "status 401: The token"),
        ((404, {}, b"Not Found"), ValueError, "status 404: Not Found"),
        ((500, {}, {"error": "it broke"}), ConnectionError, "status 500: it broke"),
        ((200, {}, {"rewards": [1.0]}), ValueError, "2 rows with .*must give a finite number for each"),
        ((200, {}, {"rewards": [1.0, None]}), ValueError, "must give a finite number"),
        ((200, {}, b'{"rewards": [1.0, NaN]}'), ValueError, "must give a finite number"),
        ((200, {}, {"scores": [1.0, 2.0]}), ValueError, "must give a finite number"),
        ((200, {}, [1.0, 2.0]), ValueError, "no JSON object"),
        ((200, {}, b"<html>"), ValueError, "no JSON object"),
    ],
)
def test_what_cannot_be_mended_is_an_error_at_once(answer, error, message):
    with Answering(answer) as server:
        with pytest.raises(error, match=message):
            RemoteRewardScorer(server.url)([None] * 2, ["1", "2"])
        assert len(server.bodies) == 1


def test_a_server_that_stays_away_is_an_error(monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda seconds: None)
    with Answering(*[(503, {}, {"error": {"message": "full"}})] * 9) as server:
        with pytest.raises(ConnectionError, match="status 503: full"):
            RemoteRewardScorer(server.url, retries=2)([None], ["1"])
        assert len(server.bodies) == 3
    with pytest.raises(ConnectionError, match=r"gave no answer .*Is the server running"):
        RemoteRewardScorer(server.url, retries=1)([None], ["1"])


def test_a_refused_row_keeps_the_message_of_the_scorer(url):
    with pytest.raises(ValueError, match="Row 1: The completion holds 3"):
        RemoteRewardScorer(url)([None] * 2, ["a", 3])
    with pytest.raises(ValueError, match=r"of the rows from 2 on.*Row 0: The completion"):
        RemoteRewardScorer(url, batch_size=2)([None] * 3, ["a", "b", 3])
    with pytest.raises(TypeError, match="`completions` is 'a'"):
        RemoteRewardScorer(url)([None], "a")
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        RemoteRewardScorer(url)([None], ["a", "b"])
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        RemoteRewardScorer(url)([None], [[{"role": "user", "content": "a", "more": object()}]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "must be that of a server"),
        ({"api": "vllm"}, "must be one of interdistill, classify"),
        ({"api": "classify"}, "give the reward model's tokenizer"),
        ({"tokenizer": "a"}, "otherwise leave it out"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "`retries` is -1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RemoteRewardScorer(**{"url": "http://127.0.0.1:8000", **options})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    build_student("llama").save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def test_a_real_server_scores_wants_its_token_and_stops_when_told(model_folder, twin):
    arguments = ("--model", str(model_folder), "--max_length", "60", "--served_model_name", "rm")
    with ServerProcess(*arguments, INTERDISTILL_TOKEN="secret") as server:
        remote = RemoteRewardScorer(server.url, token="secret", model="rm", batch_size=4, retries=0)
        assert remote([QUESTION] * 21, ANSWERS) == pytest.approx(twin([QUESTION] * 21, ANSWERS), abs=1e-5)
        with pytest.raises(PermissionError, match="The token is missing or wrong"):
            RemoteRewardScorer(server.url)([None], ["a"])
        with pytest.raises(ValueError, match="more than max_length=60"):
            remote([None], ["word " * 100])
        many, found = [f"Text {n}." for n in range(1500)], []
        patient = RemoteRewardScorer(server.url, token="secret", batch_size=len(many), retries=0)
        asking = threading.Thread(target=lambda: found.append(patient([None] * len(many), many)))
        asking.start()
        while waiting_rows(server.url) < 1000 and asking.is_alive():
            pass
        server.process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert found[0][-2:] == pytest.approx(twin([None] * 2, many[-2:]), abs=1e-5)
        assert server.process.wait(60) == 0
        assert "Stopped." in server.process.stdout.read()


def waiting_rows(url: str) -> float:
    text = requests.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}, timeout=30).text
    return float(re.search(r"^interdistill_waiting_rows (\S+)$", text, re.MULTILINE)[1])


def test_it_is_a_reward_function_of_trl(url, tmp_path):
    from datasets import Dataset
    from support.rl import save_policy
    from trl import GRPOConfig, GRPOTrainer

    policy = save_policy(tmp_path)
    args = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    remote = RemoteRewardScorer(url)
    seen = []

    def watched(prompts, completions, **kwargs):
        seen.append((prompts, completions, remote(prompts=prompts, completions=completions, **kwargs)))
        return seen[-1][2]

    data = Dataset.from_list([{"prompt": QUESTION}] * 4)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[watched, remote],
        args=args,
        train_dataset=data,
        processing_class=tokenizer_of("bytes"),
    )
    trainer.train()
    local = RewardScorer(build_student("llama"), tokenizer_of("bytes"))
    for prompts, completions, rewards in seen:
        assert rewards == pytest.approx(local(prompts, completions), abs=1e-5)
    name = f"rewards/{remote.__name__}/mean"
    assert any(name in entry for entry in trainer.state.log_history)
