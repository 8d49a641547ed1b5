"""OpenRLHF, slime and verl against a server: requests as their sources send them, answers as they read them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import re
from types import SimpleNamespace

import aiohttp
import pytest
import torch
from datasets import load_dataset
from support.datasets import ROOT
from support.models import build_student
from support.serving import served
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.serving.app import RewardApp

RECIPES = ROOT / "recipes" / "serving"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = ["Paris.", "It is Lyon, I think.", "I do not know, but it may be a city in the north of the country."]


@pytest.fixture(scope="module")
def url():
    with served(RewardApp(RewardScorer(build_student("llama"), tokenizer_of("bytes")), "rm")) as url:
        yield url


@pytest.fixture(scope="module")
def expected():
    rewards = RewardScorer(build_student("llama"), tokenizer_of("bytes"))([QUESTION] * 3, ANSWERS)
    assert len({round(reward, 3) for reward in rewards}) == 3
    return pytest.approx(rewards, abs=1e-5)


def address(script: str, option: str, url: str) -> str:
    """The address that a launch script gives to an option."""
    found = re.search(rf'{re.escape(option)}[ =]"?(\S+?)"? ', (RECIPES / script).read_text())
    return found[1].replace("$REWARD_URL", url)


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def post(url: str, payload: dict):
    async with aiohttp.ClientSession() as session, session.post(url, json=payload) as response:
        response.raise_for_status()
        return await response.json()


@pytest.mark.parametrize("closing", ["<|end|>\n</s>", "<|end|>", ""])
def test_openrlhf(url, expected, closing):
    """`SingleTurnAgentExecutor`: one query at a time, decoded with special tokens; a list of one reward comes back."""
    tokenizer = tokenizer_of("bytes")
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][0].tolist()
    endpoint = address("openrlhf.sh", "--reward.remote_url", url)
    found = []
    for answer in ANSWERS:
        action_ids = tokenizer(answer + closing, add_special_tokens=False)["input_ids"]
        query = tokenizer.decode(prompt_ids + action_ids, skip_special_tokens=False)
        payload = {"query": [query], "prompts": [prompt], "labels": [""]}
        rewards_info = asyncio.run(post(endpoint, payload))
        score = rewards_info.get("scores")
        score = rewards_info.get("rewards") if score is None else score
        assert (rewards_info.get("extra_logs") or {}) == {}
        rewards = torch.tensor([rewards_info.get("rewards")])
        assert rewards.shape == (1, 1) and torch.equal(torch.tensor([score]), rewards)
        found.append(rewards.item())
    assert found == expected


@pytest.mark.parametrize("is_rendered", [True, False])
def test_slime(url, expected, is_rendered):
    """`remote_rm`: one sample at a time; the whole answer is its reward."""
    tokenizer = tokenizer_of("bytes")
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    args = SimpleNamespace(rm_url=address("slime.sh", "--rm-url", url), reward_key=None)
    found = []
    for answer in ANSWERS:
        response = f"{answer}<|end|>" if is_rendered else answer
        sample = SimpleNamespace(prompt=prompt if is_rendered else QUESTION, response=response, label=None)
        payload = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        sample.reward = asyncio.run(post(args.rm_url, payload))
        found.append(sample.reward if not args.reward_key else sample.reward[args.reward_key])
    assert found == expected


def run_single(compute_score, row: dict, solution: str, **reward_kwargs) -> float:
    """verl's `NaiveRewardManager.run_single`, with `_call_with_kwargs` around the function."""
    assert not inspect.iscoroutinefunction(compute_score)
    extra_info = dict(row["extra_info"])
    extra_info |= {"num_turns": 2, "rollout_reward_scores": {}}
    result = compute_score(
        data_source=row["data_source"],
        solution_str=solution,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=extra_info,
        **reward_kwargs,
    )
    return result["score"] if isinstance(result, dict) else result


def test_verl(url, expected, tmp_path):
    """From prompts over the parquet file that verl reads to the rewards of its custom function."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (QUESTION, QUESTION)))
    output = tmp_path / "prompts.parquet"
    load("verl_prompts").main(["--dataset_name", str(tmp_path / "prompts.jsonl"), "--output", str(output)])
    rows = load_dataset("parquet", data_files=str(output), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows[0]["prompt"] == QUESTION and rows[1]["extra_info"] == {"index": 1, "prompt": QUESTION}
    where = address("verl.sh", "+reward.custom_reward_function.reward_kwargs.url", url)
    compute_score = load("verl_reward").compute_score
    assert [run_single(compute_score, rows[0], answer, url=where) for answer in ANSWERS] == expected


def test_verl_takes_plain_texts_as_messages(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    output = tmp_path / "prompts.parquet"
    load("verl_prompts").main(["--dataset_name", str(tmp_path / "prompts.jsonl"), "--output", str(output)])
    row = load_dataset("parquet", data_files=str(output), cache_dir=str(tmp_path / "cache"))["train"][0]
    assert row["prompt"] == row["extra_info"]["prompt"] == [{"role": "user", "content": "Why?"}]


def test_verl_function_names_what_is_wrong(url, monkeypatch):
    compute_score = load("verl_reward").compute_score
    with pytest.raises(KeyError, match=r"extra_info\.prompt"):
        compute_score("a", "b", "", {"index": 0}, url=url)
    with pytest.raises(ValueError, match="status 400"):
        compute_score("a", "b", "", {"prompt": [{"role": "user"}, {"role": 3}]}, url=url)
    with pytest.raises(ConnectionError, match="after 2 tries"):
        compute_score("a", "b", "", {"prompt": "c"}, url="http://127.0.0.1:9", tries=2)
    monkeypatch.setenv("REWARD_URL", url)
    assert isinstance(compute_score("a", "b", "", {"prompt": QUESTION}), float)


def test_verl_function_sends_the_token_and_waits_for_a_busy_server(monkeypatch):
    scorer = RewardScorer(build_student("llama"), tokenizer_of("bytes"))
    app = RewardApp(scorer, "rm", token="secret")
    compute_score = load("verl_reward").compute_score
    with served(app) as url:
        with pytest.raises(ValueError, match="status 401"):
            compute_score("a", "b", "", {"prompt": "c"}, url=url)
        monkeypatch.setenv("INTERDISTILL_TOKEN", "secret")
        from hf_interdistill.serving.queue import QueueFullError

        submit, refused = app.queue.submit, []

        def busy_once(*arguments):
            if not refused:
                refused.append(True)
                raise QueueFullError("full", 1)
            return submit(*arguments)

        monkeypatch.setattr(app.queue, "submit", busy_once)
        assert compute_score("a", "b", "", {"prompt": "c"}, url=url) == pytest.approx(
            scorer(["c"], ["b"])[0], abs=1e-5
        )
        assert refused


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.sh")))
def test_launch_scripts_are_valid_shell_and_name_what_is_there(script):
    import subprocess

    path = RECIPES / script
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
    for name in re.findall(r"recipes/serving/\w+\.py", path.read_text()):
        assert (ROOT / name).is_file()
