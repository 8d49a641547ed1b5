"""The models that a job loads beside its language model are on its device, in the data type that is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.models import build_student
from support.rain import PROMPTS, QUICK, build_causal, likes_short_words
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, served

from hf_interdistill import BestOfNConfig, RainClient, RewardEnsemble, RewardScorer
from hf_interdistill.rain.api import jobs
from hf_interdistill.rain.api.jobs import RainJobConfig, load_scorer, run_rain_job
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.embedder import TextEncoder

GPU = torch.device("cuda", 1)
PATHS = {"model": "m", "prompts": "p", "output": "o"}
CALL = [Exchange("How do I bake bread?", " Well"), Exchange("How do I bake bread?", " Another text")]


@pytest.fixture
def reward_models(tmp_path):
    """Folders of reward models, `one` and `two`, and of the ensemble of both."""
    for seed, name in enumerate(("one", "two")):
        build_student(seed=seed).save_pretrained(tmp_path / name)
        tokenizer_of("bytes").save_pretrained(tmp_path / name)
    RewardEnsemble.from_pretrained([str(tmp_path / "one"), str(tmp_path / "two")]).save_pretrained(tmp_path / "both")
    return tmp_path


@pytest.fixture
def moved(monkeypatch):
    """Where reward models were moved to; none of them leaves the CPU, and the job's device is a GPU."""
    found = []
    monkeypatch.setattr(RewardScorer, "to", lambda self, device: found.append(device) or self)
    monkeypatch.setattr(jobs, "PartialState", lambda: SimpleNamespace(device=GPU))
    return found


def rewards_of(folder, dtype=torch.float32) -> list[float]:
    """In plain torch, one text at a time."""
    scorer = RewardScorer.from_pretrained(str(folder))
    model = scorer.model.to(dtype)
    rows = scorer.encode_rows([each.prompt for each in CALL], [each.completion for each in CALL])
    with torch.no_grad():
        return [model(torch.tensor([row])).logits.item() for row in rows]


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_reward_model_is_moved_and_has_its_data_type(reward_models, moved, dtype, is_cached):
    given = {} if dtype is None else {"reward_dtype": dtype}
    config = RainJobConfig(
        **PATHS, scorer="reward", reward_model=str(reward_models / "one"), reward_cache=is_cached, **given
    )
    scorer = load_scorer(config)
    expected = getattr(torch, dtype or "float32")
    assert moved == [GPU] and scorer.reward.model.dtype == expected
    values, _ = scorer.bind(None, None).score_batch(CALL)
    plain = [math.tanh(each) for each in rewards_of(reward_models / "one", expected)]
    assert values == pytest.approx(plain, abs=1e-5 if dtype is None else 0.05)


def test_each_member_of_an_ensemble_is_moved(reward_models, moved):
    config = RainJobConfig(
        **PATHS,
        scorer="reward",
        reward_model=str(reward_models / "both"),
        reward_dtype="bfloat16",
        batch_size=5,
    )
    ensemble = load_scorer(config).reward
    assert moved == [GPU, GPU] and [each.model.dtype for each in ensemble.members] == [torch.bfloat16] * 2
    assert [each.batch_size for each in ensemble.members] == [5, 5]


def test_the_options_are_those_of_best_of_n():
    rain, best = RainJobConfig(**PATHS), BestOfNConfig(prompts="p", output="o", reward_model="r")
    for name in ("batch_size", "reward_dtype"):
        assert getattr(rain, name) == getattr(best, name)
    assert (rain.batch_size, rain.reward_dtype) == (16, "float32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_dtype": "bfloat"}, "`reward_dtype` is 'bfloat', but must be .* Did you mean `bfloat16`"),
        ({"batch_size": 0}, "`batch_size` is 0, but must be a whole number of at least 1"),
        (
            {"batch_size": 4, "reward_cache": True},
            "`batch_size` changes nothing without a reward model that reads",
        ),
        (
            {"reward_dtype": "bfloat16", "reward_server": "http://localhost:1"},
            "`reward_dtype` changes nothing without a reward model that is loaded here",
        ),
        (
            {"reward_dtype": "bfloat16", "scorer": "self", "reward_model": None},
            "`reward_dtype` changes nothing without a reward model that is loaded here",
        ),
        (
            {"batch_size": 4, "scorer": "self", "reward_model": None},
            "`batch_size` changes nothing without a reward model that reads whole texts",
        ),
    ],
)
def test_what_has_no_effect_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RainJobConfig(**{**PATHS, "scorer": "reward", "reward_model": "r", **settings})


def test_a_job_on_a_server_moves_its_reward_model_too(reward_models, monkeypatch):
    """With the same answers; rows of a batch change none of them."""
    (reward_models / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    tokenizer_of("bytes").save_pretrained(reward_models / "lm")
    devices, to = [], RewardScorer.to
    monkeypatch.setattr(RewardScorer, "to", lambda self, device: devices.append(device) or to(self, device))
    answers = []
    with served(VllmLike(build_causal(), tokenizer_of("bytes"))) as url:
        for size in (1, 16):
            config = RainJobConfig(
                model="lm",
                server=url,
                tokenizer=str(reward_models / "lm"),
                prompts=str(reward_models / "prompts.jsonl"),
                output=str(reward_models / f"{size}.jsonl"),
                rain=QUICK,
                generation={"max_new_tokens": 4, "do_sample": True, "temperature": 1e-6, "top_k": 0},
                scorer="reward",
                reward_model=str(reward_models / "one"),
                batch_size=size,
            )
            run_rain_job(config)
            lines = Path(config.output).read_text(encoding="utf-8").splitlines()
            answers.append([json.loads(line)["tokens"] for line in lines])
    assert devices == [torch.device("cpu")] * 2
    assert answers[0] == answers[1] and all(len(tokens) == 4 for tokens in answers[0])


def test_results_depend_on_the_data_type_alone():
    def settings(**changes):
        return RainJobConfig(**PATHS, scorer="reward", reward_model="r", **changes).result_settings()

    assert settings(batch_size=3) == settings()
    assert settings(reward_dtype="bfloat16") != settings()


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_encoder_of_a_client_is_on_a_gpu_if_there_is_one(has_gpu, device, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(TextEncoder, "from_pretrained", lambda name, device: asked.append((name, device)))
    client = RainClient("http://localhost:1", "lm", tokenizer, {"similarity_model": "encoder"}, likes_short_words)
    client.build_engine(client.resolve({}))
    assert asked == [("encoder", device)]
