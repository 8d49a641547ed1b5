#!/bin/sh
# slime against `interdistill serve`: the part of a launch script that is about rewards. Not run here: no GPU was at hand.
# The other arguments (checkpoints, Megatron, SGLang) are those of slime's own scripts, such as scripts/run-qwen3-4B.sh.
# The policy must have the reward model's chat template. Run it in slime's folder.
set -e
REWARD_URL=${REWARD_URL:-http://127.0.0.1:8000}

python3 train.py \
    --rm-type remote_rm \
    --rm-url "$REWARD_URL/remote_rm" \
    --input-key prompt \
    --apply-chat-template \
    --n-samples-per-prompt 8 \
    --advantage-estimator grpo \
    "$@"
