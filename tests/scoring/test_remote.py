"""`RemoteRewardScorer`: the rewards of `RewardScorer`, in their order, over HTTP that fails now and then."""

from __future__ import annotations

import re
import signal
import threading

import pytest
import requests
from support.answering import Answering
from support.models import build_student
from support.rl import grpo_trainer, save_policy
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
    remote = RemoteRewardScorer(url)
    seen = []

    def watched(prompts, completions, **kwargs):
        seen.append((prompts, completions, remote(prompts=prompts, completions=completions, **kwargs)))
        return seen[-1][2]

    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "logging_steps": 1}
    trainer = grpo_trainer(tmp_path / "out", save_policy(tmp_path), [watched, remote], QUESTION, **sizes)
    trainer.train()
    local = RewardScorer(build_student("llama"), tokenizer_of("bytes"))
    for prompts, completions, rewards in seen:
        assert rewards == pytest.approx(local(prompts, completions), abs=1e-5)
    name = f"rewards/{remote.__name__}/mean"
    assert any(name in entry for entry in trainer.state.log_history)
