"""Every recipe of reinforcement learning trains, on tiny models."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys

import pytest
import yaml
from support.datasets import ROOT
from support.models import build_student
from support.rl import HAS_PPO, needs_ppo, save_policy
from support.serving import served
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardEnsemble, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.serving.app import RewardApp

RECIPES = ROOT / "recipes" / "rl"
SMALL = {
    "grpo": {"num_generations": 2, "max_completion_length": 4, "max_steps": 2},
    "rloo": {"num_generations": 2, "max_completion_length": 4, "max_steps": 2},
    "online_dpo": {"max_new_tokens": 4, "max_steps": 2},
    "ppo": {"response_length": 4, "total_episodes": 16, "num_ppo_epochs": 1, "num_sample_generations": 1},
}
SHARED = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "reward_dtype": "float32",
}
METHODS = [*("grpo", "rloo", "online_dpo"), pytest.param("ppo", marks=needs_ppo)]


def load_script():
    spec = importlib.util.spec_from_file_location("recipes_rl_train", RECIPES / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path)
    build_student().save_pretrained(tmp_path / "rm")
    for name in ("policy", "rm"):
        tokenizer_of("bytes").save_pretrained(tmp_path / name)
    (tmp_path / "data").mkdir()
    rows = [{"prompt": [{"role": "user", "content": f"Question {i}"}], "chosen": "a"} for i in range(8)]
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder, method: str, **changes) -> list[str]:
    own = {
        "model_name_or_path": folder / "policy",
        "reward_model": folder / "rm",
        "dataset_name": folder / "data",
        "output_dir": folder / "out",
    }
    settings = {**own, **SHARED, **SMALL[method], **changes}
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return [method, "--config", str(RECIPES / f"{method}.yaml"), *flags]


@pytest.mark.parametrize("method", METHODS)
def test_recipe_trains(folder, method):
    trainer = load_script().main(command(folder, method))
    written = yaml.safe_load((RECIPES / f"{method}.yaml").read_text())
    overridden = {*SHARED, *SMALL[method], "output_dir"}
    compared = [key for key in written if key not in overridden and hasattr(trainer.args, key)]
    assert {"learning_rate", "seed", "save_steps"} <= set(compared)
    for key in compared:
        read = getattr(trainer.args, key)
        assert getattr(read, "value", read) == written[key], key
    assert trainer.state.global_step >= 2
    assert (folder / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_recipe_trains_on_a_served_reward(folder, method):
    scorer = RewardScorer.from_pretrained(str(folder / "rm"))
    seen = []
    score = scorer.score_ids
    scorer.score_ids = lambda rows, **options: seen.extend(rows) or score(rows, **options)
    with served(RewardApp(scorer, "rm")) as url:
        trainer = load_script().main(command(folder, method, reward_model="rm", reward_server=url, logging_steps=1))
    assert trainer.state.global_step == 2 and len(seen) >= 8
    name = "rm"
    means = [row[f"rewards/{name}/mean"] for row in trainer.state.log_history if f"rewards/{name}/mean" in row]
    rewards = RewardScorer.from_pretrained(str(folder / "rm")).score_ids(seen)
    assert len(means) == 2 and min(rewards) - 1e-5 <= min(means) <= max(means) <= max(rewards) + 1e-5


@pytest.mark.parametrize("method", ["grpo", "rloo", "online_dpo"])
def test_recipe_trains_on_an_ensemble_of_local_and_served_members(folder, method, monkeypatch):
    build_student(seed=7).save_pretrained(folder / "other")
    tokenizer_of("bytes").save_pretrained(folder / "other")
    members = [RewardScorer.from_pretrained(str(folder / name)) for name in ("rm", "other")]
    seen = []
    score = RewardEnsemble.__call__

    def recording(self, prompts, completions, **options):
        seen.append((prompts, completions, score(self, prompts, completions, **options)))
        return seen[-1][2]

    monkeypatch.setattr(RewardEnsemble, "__call__", recording)
    with served(RewardApp(members[1], "other")) as url:
        RewardEnsemble.from_pretrained([str(folder / "rm"), url], aggregation="worst").save_pretrained(folder / "both")
        trainer = load_script().main(command(folder, method, reward_model=folder / "both"))
    assert trainer.state.global_step == 2 and len(seen) >= 2
    for prompts, completions, rewards in seen:
        each = [member(prompts, completions) for member in members]
        assert rewards == pytest.approx([min(pair) for pair in zip(*each, strict=True)], abs=1e-5)


def test_adapters_train_too(folder):
    trainer = load_script().main(command(folder, "grpo", use_peft=True, lora_r=4))
    assert (folder / "out" / "adapter_model.safetensors").is_file() and trainer.state.global_step == 2


def test_a_killed_run_resumes(folder):
    script = load_script()
    script.main(command(folder, "grpo", save_steps=1, max_steps=1, logging_steps=1))
    half = folder / "out" / "checkpoint-2"  # as a kill in mid-save leaves it
    shutil.copytree(folder / "out" / "checkpoint-1", half)
    (half / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run \(checkpoint-1, checkpoint-2\)"):
        script.main(command(folder, "grpo"))
    again = command(folder, "grpo", save_steps=1, max_steps=3, logging_steps=1, resume_from_checkpoint=True)
    trainer = script.main(again)
    assert trainer.state.global_step == 3
    assert [row["step"] for row in trainer.state.log_history if "reward" in row] == [1, 2, 3]  # the first one's kept
    script.main(command(folder, "grpo", save_strategy="no", overwrite=True))
    assert not list((folder / "out").glob("checkpoint-*"))


def test_mistakes_are_named(folder):
    script = load_script()
    with pytest.raises(SystemExit, match="must be one of grpo, rloo, online_dpo, ppo"):
        script.main(["dpo"])
    with pytest.raises(ValueError, match="Unknown key `reward_modle`"):
        script.main([*command(folder, "grpo"), "--reward_modle", "x"])
    (folder / "both").mkdir()
    (folder / "both" / "reward_ensemble.json").write_text('{"members": ["../rm", "http://127.0.0.1:1"]}')
    with pytest.raises(ValueError, match=r"`reward_model` is '.*both', an ensemble, but PPOTrainer reads one model"):
        script.load_scorer(script.RewardArguments(str(folder / "both")), "ppo")
    if HAS_PPO:
        with pytest.raises(ValueError, match="PPOTrainer runs the reward model itself"):
            script.main(command(folder, "ppo", reward_server="http://127.0.0.1:1"))
        with pytest.raises(ValueError, match="PPOTrainer cannot resume"):
            script.main(command(folder, "ppo", resume_from_checkpoint=True))
    (folder / "data" / "train.jsonl").write_text('{"text": "x"}\n')
    (folder / "data" / "test.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match="but needs `prompt`"):
        script.main(command(folder, "grpo"))


def test_without_ppo_the_extra_is_named(monkeypatch):
    script = load_script()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"\.\[ppo\]"):
        script.main(["ppo"])


def test_the_readme_names_every_recipe():
    text = (RECIPES / "README.md").read_text()
    for path in RECIPES.glob("*.yaml"):
        command = "interdistill best-of-n" if path.stem == "best_of_n" else f"train.py {path.stem}"
        assert f"{command} --config recipes/rl/{path.name}" in text


def test_best_of_n_recipe_and_readme_command_run(folder):
    """The recipe with the models, prompts and sizes overridden; the README's second command with its paths."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "Tell me"}\n{"prompt": "Why"}\n')
    small = {
        "model": folder / "policy",
        "reward_model": folder / "rm",
        "prompts": prompts,
        "n": 3,
        "generation": '{"max_new_tokens": 4}',
    }
    recipe = {**small, "output": folder / "a.jsonl", "selected": folder / "pairs.jsonl", "margin": 0.0}
    flags = [part for key, value in recipe.items() for part in (f"--{key}", str(value))]
    config = ["--dtype", "float32", "--reward_dtype", "float32"]
    assert main(["best-of-n", "--config", str(RECIPES / "best_of_n.yaml"), *flags, *config]) == 0
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["reward_chosen"] > row["reward_rejected"] for row in rows)
    text = (RECIPES / "README.md").read_text()
    start = text.index("interdistill best-of-n --prompts")
    written = shlex.split(text[start : text.index("```", start)].replace("\\\n", " "))[1:]
    given = {"prompts.jsonl": prompts, "runs/rm": folder / "rm", "PATH": folder / "policy"}
    given |= {"runs/scored.jsonl": folder / "scored.jsonl", "runs/best.jsonl": folder / "best.jsonl"}
    assert main([str(given.get(word, word)) for word in written]) == 0
    assert len((folder / "best.jsonl").read_text().splitlines()) == 2
