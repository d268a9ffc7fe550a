#!/usr/bin/env bash
# Fine-tune pythia-12b on Dolly the way that everyone starts: plain data parallelism. It runs OUT OF MEMORY on every GPU
# below 200 GiB: 16 bytes a parameter, 177 GiB on each, before any activation. The plan says so beforehand; --force starts it
# all the same, and --ladder off leaves it dead. scripts/ft-pythia-12b.sh is the same run with a plan.
#
#   scripts/ft-pythia-12b-naive.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-12b --data dolly --seq_len 2048 --save_every 500 --keep_states 1 \
    --strategy ddp --force --ladder off -- "$@"
