#!/bin/sh
# OpenRLHF 0.11 (REINFORCE with a group baseline) against `interdistill serve`. Not run here: no GPU was at hand.
# Versions below 0.11 call the option --remote_rm_url. The policy must have the reward model's chat template.
set -e
REWARD_URL=${REWARD_URL:-http://127.0.0.1:8000}

python3 -m openrlhf.cli.train_ppo_ray \
    --actor.model_name_or_path Qwen/Qwen3-0.6B \
    --reward.remote_url "$REWARD_URL/get_reward" \
    --reward.clip_range -100 100 \
    --data.prompt_dataset trl-lib/hh-rlhf-helpful-base \
    --data.input_key prompt \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --algo.advantage.estimator group_norm \
    --algo.kl.init_coef 0.01 \
    --rollout.n_samples_per_prompt 8 \
    --rollout.batch_size 128 \
    --train.batch_size 128 \
    --train.colocate_all \
    --actor.num_nodes 1 --actor.num_gpus_per_node 8 \
    --ref.num_nodes 1 --ref.num_gpus_per_node 8 \
    --ckpt.output_dir runs/qwen3-0.6b/openrlhf \
    "$@"
