#!/usr/bin/env bash
# What would be submitted to a SLURM cluster: the plan and the sbatch file. Nothing is started, and no SLURM is
# needed. Copy cluster.yaml, write in it what your cluster's documentation says, and look at the result.
#
#     examples/slurm_dry_run.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

wellread plan finetune --model "${MODEL:-pythia-2.8b}" --data sample --cluster examples/cluster.yaml --nodes 2
