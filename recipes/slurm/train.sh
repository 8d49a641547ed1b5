#!/bin/bash
#SBATCH --job-name=interdistill-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# One command of `interdistill` in all processes of several nodes; one task a node starts the node's processes:
#
#     sbatch recipes/slurm/train.sh reward --config recipes/qwen3-8b/reward/interaction_full.yaml
#
# ACCELERATE_CONFIG: how weights are shared. PROCESSES_PER_NODE: by default one a GPU. LAUNCH_OPTIONS: further ones of
# `accelerate launch`. The working folder, the data and `output_dir` are on a file system that all nodes share.
set -euo pipefail

export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-recipes/accelerate_configs/fsdp2.yaml}
export PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
export LAUNCH_OPTIONS=${LAUNCH_OPTIONS:-}
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_NODE=${nodes%%$'\n'*}
export MAIN_PORT=${MAIN_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# SLURM_NODEID, the rank of the machine, is known in the tasks alone. A task that fails ends the others.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$ACCELERATE_CONFIG" \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * PROCESSES_PER_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_NODE" --main_process_port "$MAIN_PORT" \
    $LAUNCH_OPTIONS --module hf_interdistill.cli "$@"' task "$@"
