#!/usr/bin/env bash
# Fine-tune pythia-1.4b on Dolly as a SLURM job. Needs a node of 8 GPUs with 24 GiB each, and 128 GiB of host memory.
# Describe your cluster first (docs/clusters.md): copy configs/clusters/slurm.yaml to my-cluster.yaml, add gres: gpu:8
# and the partition, and pass --cluster my-cluster.yaml
#
#   scripts/ft-pythia-1.4b-slurm.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-1.4b --data dolly --cluster slurm -- "$@"
