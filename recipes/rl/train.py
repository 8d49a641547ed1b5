"""Trains a policy against a reward model with one of TRL's trainers.

    python recipes/rl/train.py grpo --config recipes/rl/grpo.yaml [--key value ...]

Methods: grpo, rloo, online_dpo, ppo (TRL below 1.13: the extra `ppo`). Rewards are `RewardScorer`'s in all of them.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_interdistill import RemoteRewardScorer, ppo_reward_model, ppo_value_model
from hf_interdistill.scoring.aggregation import is_ensemble
from hf_interdistill.scoring.opening import open_scorer
from hf_interdistill.scoring.reward_apis import refuse_unused_of_reward_server
from hf_interdistill.scoring.text_scorer import TextScorer
from hf_interdistill.training.checkpoints import checkpoint_to_resume, is_resume_requested
from hf_interdistill.training.data_arguments import DataArguments
from hf_interdistill.training.output_dir import OutputDirArguments, prepare_output_dir
from hf_interdistill.utils.data import get_split
from hf_interdistill.utils.fields import refuse_unused
from hf_interdistill.utils.parsing import parse

METHODS = {
    "grpo": ("trl", "GRPO"),
    "rloo": ("trl", "RLOO"),
    "online_dpo": ("trl.experimental.online_dpo", "OnlineDPO"),
    "ppo": ("trl.experimental.ppo", "PPO"),
}


@dataclass
class RewardArguments:
    """Which reward model to train against."""

    reward_model: str = field(metadata={"help": "Reward model, adapter or ensemble: folder or Hub name."})
    reward_batch_size: int = field(default=16, metadata={"help": "Completions a forward pass of the reward model."})
    reward_dtype: str = field(default="float32", metadata={"help": "Data type to load the reward model in."})
    reward_server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of servers that have the reward model (not with ppo)."}
    )
    reward_api: str = field(
        default="interdistill", metadata={"help": "How it is asked: interdistill, or classify (vLLM)."}
    )
    reward_tokenizer: str | None = field(
        default=None, metadata={"help": "With classify: tokenizer of the served reward model; default: its name."}
    )


def main(arguments: list[str]):
    """Train as the method (first argument) and its recipe say; returns the trainer."""
    method = arguments[0] if arguments else ""
    if method not in METHODS:
        raise SystemExit(f"The method is {method!r}, but must be one of {', '.join(METHODS)}.")
    config_class, trainer_class = load_method(method)
    classes = (RewardArguments, DataArguments, config_class, ModelConfig, OutputDirArguments)
    reward, data, args, model, output_dir = parse(classes, arguments[1:])
    resume = args.resume_from_checkpoint
    if method == "ppo" and is_resume_requested(resume):
        raise ValueError(f"`resume_from_checkpoint` is {resume!r}, but PPOTrainer cannot resume. Leave it out.")
    prepare_output_dir(output_dir, args)
    scorer = load_scorer(reward, method)
    tokenizer = AutoTokenizer.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, padding_side="left"
    )
    settings = {
        "args": args,
        "model": load_policy(model),
        "processing_class": tokenizer,
        "train_dataset": load_prompts(data, data.dataset_train_split),
        "peft_config": get_peft_config(model),
    }
    if method == "ppo":
        settings |= {
            "train_dataset": encode_prompts(settings["train_dataset"], tokenizer),
            "eval_dataset": encode_prompts(load_prompts(data, data.dataset_test_split), tokenizer),
            "ref_model": None,
            "reward_model": ppo_reward_model(scorer, tokenizer),
            "value_model": ppo_value_model(scorer, tokenizer),
        }
    else:
        settings["reward_funcs"] = [scorer]
    trainer = trainer_class(**settings)
    if method == "ppo":
        trainer.train()
    else:
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(resume, args.output_dir))
    trainer.save_model(args.output_dir)
    return trainer


def load_method(method: str) -> tuple[type, type]:
    """Config and trainer of a method."""
    module, name = METHODS[method]
    if method == "ppo":
        from hf_interdistill.scoring.ppo import require_ppo

        require_ppo()
    loaded = importlib.import_module(module)
    return getattr(loaded, f"{name}Config"), getattr(loaded, f"{name}Trainer")


def load_scorer(reward: RewardArguments, method: str) -> TextScorer:
    """The reward model: loaded here, or on a server."""
    refuse_unused_of_reward_server(reward)
    if reward.reward_server is None:
        if method == "ppo" and is_ensemble(reward.reward_model):
            raise ValueError(
                f"`reward_model` is {reward.reward_model!r}, an ensemble, but PPOTrainer reads one model. Give one of "
                "its members, or train with GRPO, RLOO or online DPO."
            )
        scorer = open_scorer(reward.reward_model, batch_size=reward.reward_batch_size, dtype=reward.reward_dtype)
        return scorer if method == "ppo" else scorer.to(PartialState().device)
    if method == "ppo":
        raise ValueError(
            "`reward_server` is set, but PPOTrainer runs the reward model itself. Leave it out, or train with GRPO."
        )
    refuse_unused(reward, {"reward_dtype": (False, "a reward model that is loaded here")})
    return RemoteRewardScorer.for_job(
        reward.reward_server,
        api=reward.reward_api,
        model=reward.reward_model,
        tokenizer=reward.reward_tokenizer,
        batch_size=reward.reward_batch_size,
        timeout=300.0,
    )


def load_policy(model: ModelConfig):
    """The policy to train."""
    return AutoModelForCausalLM.from_pretrained(
        model.model_name_or_path,
        revision=model.model_revision,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        quantization_config=get_quantization_config(model),
    )


def load_prompts(data: DataArguments, split: str):
    """The column `prompt` of a split: text or messages."""
    rows = get_split(data.load(), split, data.dataset_name)
    if "prompt" not in rows.column_names:
        raise ValueError(f"{data.dataset_name} has the columns {rows.column_names}, but needs `prompt`.")
    return rows.select_columns(["prompt"])


def encode_prompts(dataset, tokenizer):
    """PPO's queries: token ids of the prompts, messages with the generation prompt."""

    def encode(row: dict) -> dict:
        if isinstance(row["prompt"], str):
            return {"input_ids": tokenizer(row["prompt"])["input_ids"]}
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    return dataset.map(encode, remove_columns=["prompt"])


if __name__ == "__main__":
    main(sys.argv[1:])
