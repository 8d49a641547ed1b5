"""TRL's trainers against a reward model by path, as a model and as a `RewardScorer`, trained for real."""

from __future__ import annotations

import importlib

import pytest
import torch
from datasets import Dataset
from support.datasets import SHARED_DATA
from support.models import STUDENT_FAMILIES, build_student
from support.rl import save_policy
from support.tokenizers import tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hf_interdistill import RewardScorer

TRAINERS = {"GRPO": "trl", "RLOO": "trl", "OnlineDPO": "trl.experimental.online_dpo"}
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
}


def build_trainer(name: str, policy, tokenizer, prompts, folder, **settings):
    module = importlib.import_module(TRAINERS[name])
    reward_keys = {key: settings.pop(key) for key in ("reward_funcs", "reward_processing_classes") if key in settings}
    if name == "OnlineDPO":
        settings["max_new_tokens"] = settings.pop("max_completion_length")
        settings.pop("num_generations")
    args = getattr(module, f"{name}Config")(output_dir=str(folder), **QUIET, **settings)
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    return getattr(module, f"{name}Trainer")(
        model=policy, args=args, train_dataset=rows, processing_class=tokenizer, **reward_keys
    )


def build_policy(folder):
    """A random policy, from a folder: RLOO loads its reference model from there."""
    return AutoModelForCausalLM.from_pretrained(save_policy(folder))


class Recorder:
    """What a trainer asks of each of its reward functions, and what it gets."""

    def __init__(self, scorer: RewardScorer):
        self.scorer, self.prompts, self.completions = scorer, [], []
        self.rewards: dict[str, list[float]] = {"scorer": []}

    def __call__(self, prompts, completions, **kwargs):
        rewards = self.scorer(prompts, completions, **kwargs)
        self.prompts += prompts
        self.completions += completions
        self.rewards["scorer"] += rewards
        return rewards

    def watch(self, name: str, model) -> None:
        self.rewards[name] = []
        model.register_forward_hook(lambda _, __, output: self.rewards[name].extend(output.logits[:, 0].tolist()))


def as_messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "text"])
@pytest.mark.parametrize("name", TRAINERS)
def test_rewards_by_path_as_a_model_and_as_a_scorer(name, is_chat, tmp_path):
    tokenizer = tokenizer_of("bytes")
    build_student().save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    path = str(tmp_path / "rm")
    recorder = Recorder(RewardScorer.from_pretrained(path))
    prompts = ["Tell me about bread", "Why", "What is a piano made of?", "Hello there"]
    trainer = build_trainer(
        name,
        build_policy(tmp_path),
        tokenizer_of("bytes"),
        [as_messages(prompt) if is_chat else prompt for prompt in prompts] * 2,
        tmp_path / "out",
        reward_funcs=[path, AutoModelForSequenceClassification.from_pretrained(path), recorder],
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-3,
    )
    recorder.watch("path", trainer.reward_funcs[0])
    recorder.watch("model", trainer.reward_funcs[1])
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())
    scorer = RewardScorer.from_pretrained(path)
    expected = scorer(recorder.prompts, recorder.completions)
    assert len(expected) >= 8 and len({round(reward, 3) for reward in expected}) > 4
    assert recorder.rewards["scorer"] == pytest.approx(expected, abs=1e-4)
    if not is_chat:  # TRL adds no EOS to plain text, and no special tokens, whatever the model was trained with
        texts = [
            prompt + completion for prompt, completion in zip(recorder.prompts, recorder.completions, strict=True)
        ]
        bare = scorer.score_ids([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
        assert bare != pytest.approx(expected, abs=1e-2)
        expected = bare
    assert recorder.rewards["path"] == pytest.approx(expected, abs=1e-4)
    assert recorder.rewards["model"] == pytest.approx(expected, abs=1e-4)


def test_adapters_by_path_need_their_tokenizer(tmp_path):
    """TRL looks for the tokenizer beside the base model; the score head comes with the adapter."""
    from support.rl import save_reward_model

    path, tokenizer = save_reward_model(tmp_path, "bytes", is_adapter=True), tokenizer_of("bytes")
    settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, "max_steps": 1}
    arguments = ("GRPO", build_policy(tmp_path), tokenizer, [as_messages("Hello")] * 4, tmp_path / "out")
    with pytest.raises((OSError, ValueError)):
        build_trainer(*arguments, reward_funcs=[path], **settings)
    recorder = Recorder(RewardScorer.from_pretrained(path))
    classes = [tokenizer_of("bytes"), None]
    trainer = build_trainer(*arguments, reward_funcs=[path, recorder], reward_processing_classes=classes, **settings)
    recorder.watch("path", trainer.reward_funcs[0])
    trainer.train()
    assert len(recorder.completions) >= 4
    assert recorder.rewards["path"] == pytest.approx(recorder.rewards["scorer"], abs=1e-4)


def build_letter_reward_model() -> LlamaForSequenceClassification:
    """A reward model that is easy to please: it counts tokens with an `e` (one layer of uniform attention)."""
    tokenizer = tokenizer_of("bytes")
    config = {**STUDENT_FAMILIES["llama"], "num_hidden_layers": 1, "num_key_value_heads": 4, "num_labels": 1}
    model = LlamaForSequenceClassification(LlamaConfig(**config))
    has_letter = torch.tensor([float("e" in tokenizer.decode([token])) for token in range(900)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.dim() > 1 else parameter.fill_(1.0)
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight.copy_(torch.eye(32))
        attention.o_proj.weight.copy_(torch.eye(32))
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, 0] = has_letter
        model.score.weight[0, 0] = 5.0
    return model


def test_the_mean_reward_rises(tmp_path):
    scorer = RewardScorer(build_letter_reward_model(), tokenizer_of("bytes"), batch_size=32)
    assert scorer(["say "] * 3, ["xxxx", "xexe", "eeee"]) == sorted(scorer(["say "] * 3, ["xxxx", "xexe", "eeee"]))
    trainer = build_trainer(
        "GRPO",
        build_policy(tmp_path),
        tokenizer_of("bytes"),
        ["Tell us about radio"] * 32,
        tmp_path,
        reward_funcs=[scorer],
        per_device_train_batch_size=32,
        num_generations=32,
        max_completion_length=8,
        max_steps=16,
        learning_rate=3e-2,
        beta=0.0,
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert last > first + 0.3, rewards


@pytest.mark.skipif(not (SHARED_DATA / "stories260k").is_dir(), reason="the stories260k model is not here")
def test_a_real_policy_by_path(tmp_path):
    policy = str(SHARED_DATA / "stories260k")
    from transformers import AutoTokenizer

    recorder = Recorder(RewardScorer(build_student(), tokenizer_of("bytes")))
    trainer = build_trainer(
        "GRPO",
        policy,
        AutoTokenizer.from_pretrained(policy),
        ["Once upon a time", "One day, Lily"] * 4,
        tmp_path,
        reward_funcs=[recorder],
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        max_steps=2,
        learning_rate=1e-4,
    )
    trainer.train()
    expected = RewardScorer(build_student(), tokenizer_of("bytes"))(recorder.prompts, recorder.completions)
    assert recorder.rewards["scorer"] == pytest.approx(expected, abs=1e-4)
    assert {"Once upon a time", "One day, Lily"} >= set(recorder.prompts) and trainer.state.global_step == 2
