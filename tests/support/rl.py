"""Reward models and policies for reinforcement learning."""

from __future__ import annotations

import importlib.util

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from support.models import STUDENT_FAMILIES, build_student
from support.tokenizers import tokenizer_of

HAS_PPO = importlib.util.find_spec("trl.experimental.ppo") is not None


needs_ppo = pytest.mark.skipif(not HAS_PPO, reason="PPOTrainer left TRL with 1.13 (extra `ppo`)")


def save_reward_model(folder, kind: str, is_adapter: bool) -> str:
    tokenizer = tokenizer_of(kind)
    tokenizer.save_pretrained(folder / "rm")
    if not is_adapter:
        build_student().save_pretrained(folder / "rm")
        return str(folder / "rm")
    from peft import LoraConfig, get_peft_model

    build_student(seed=3).save_pretrained(folder / "base")
    base = build_student(seed=3)
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    settings = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(folder / "rm")
    return str(folder / "rm")


def save_policy(folder) -> str:
    set_seed(1)
    AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"])).save_pretrained(folder / "policy")
    return str(folder / "policy")


def grpo_trainer(folder, policy, reward_funcs, prompt="Tell me", **changes):
    """TRL's `GRPOTrainer` for one step on a CPU: a group of two short answers.

    Args:
        folder: for its output. policy: a model or its folder. reward_funcs: as TRL takes them.
        prompt: text or messages. changes: other values of `GRPOConfig`.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    quiet = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "bf16": False}
    return GRPOTrainer(
        policy,
        reward_funcs=reward_funcs,
        args=GRPOConfig(output_dir=str(folder), **{**settings, **quiet, **changes}),
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 4),
        processing_class=tokenizer_of("bytes"),
    )
