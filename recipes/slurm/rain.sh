#!/bin/bash
#SBATCH --job-name=interdistill-rain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# A vLLM server on each node, and RAIN over all of them, on the first node:
#
#     MODEL=Qwen/Qwen3-8B sbatch recipes/slurm/rain.sh --preset fast --prompts prompts.jsonl --output answers.jsonl \
#         --max_new_tokens 64
#
# MODEL: name or folder. SERVE_OPTIONS: further ones of `vllm serve`, which override those below. START_WITHIN: seconds for the servers to start;
# those that have not are left out. The servers take requests with the key alone that is made here.
# Another job of servers and clients: COMMAND=best-of-n, with its own options.
set -euo pipefail

MODEL=${MODEL:?'set it to the name or folder of the model'}
COMMAND=${COMMAND:-rain}
START_WITHIN=${START_WITHIN:-1800}
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export VLLM_API_KEY=${VLLM_API_KEY:-$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')}

# The log probabilities that RAIN needs for `top_p` and `repetition_penalty` of models' generation configs. A server that
# ends takes no other with it.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=0 vllm serve "$MODEL" --served-model-name lm --host 0.0.0.0 --port "$PORT" \
    --max-logprobs 64 --logprobs-mode processed_logprobs ${SERVE_OPTIONS:-} &
servers=$!
trap 'kill "$servers" 2> /dev/null || true; wait "$servers" 2> /dev/null || true' EXIT

urls=()
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    urls+=("http://$node:$PORT")
done
end=$((SECONDS + START_WITHIN))
for url in "${urls[@]}"; do
    until curl --silent --fail --output /dev/null --max-time 5 "$url/health"; do
        kill -0 "$servers" 2> /dev/null || { echo "All servers have ended; the log says why." >&2; exit 1; }
        [ "$SECONDS" -lt "$end" ] || { echo "$url has not started within $START_WITHIN s." >&2; break; }
        sleep 2
    done
done

interdistill "$COMMAND" --server "${urls[@]}" --model lm --tokenizer "$MODEL" "$@"
