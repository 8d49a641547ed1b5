#!/bin/sh
# verl 0.9 (GRPO) against `interdistill serve`. Not run here: no GPU was at hand.
# The prompts come from: python recipes/serving/verl_prompts.py --dataset_name NAME --output runs/prompts.parquet
set -e
REWARD_URL=${REWARD_URL:-http://127.0.0.1:8000}

python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path=Qwen/Qwen3-0.6B \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    data.train_files=runs/prompts.parquet \
    data.val_files=runs/prompts.parquet \
    data.train_batch_size=128 \
    data.max_prompt_length=1024 \
    data.max_response_length=512 \
    reward.custom_reward_function.path=recipes/serving/verl_reward.py \
    reward.custom_reward_function.name=compute_score \
    +reward.custom_reward_function.reward_kwargs.url="$REWARD_URL" \
    trainer.n_gpus_per_node=8 \
    trainer.default_local_dir=runs/qwen3-0.6b/verl \
    "$@"
