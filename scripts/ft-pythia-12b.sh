#!/usr/bin/env bash
# Fine-tune pythia-12b on Dolly on one node, with the fastest strategy that fits, which the plan chooses. Needs 8 GPUs
# of 80 GiB, 1,000 GiB of host memory and 500 GiB of disk. For other nodes, see the plan: scripts/ft-pythia-12b.sh plan
#
#   scripts/ft-pythia-12b.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-12b --data dolly --seq_len 2048 --save_every 500 --keep_states 1 -- "$@"
