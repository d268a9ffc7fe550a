#!/usr/bin/env bash
# Fine-tune pythia-12b on Dolly with plain data parallelism, the usual first attempt. It runs OUT OF MEMORY on every GPU
# with less than 200 GiB: 16 bytes per parameter are 177 GiB per GPU, without activations. The plan rejects it; --force
# starts it anyway, and --ladder off disables the fallback. scripts/ft-pythia-12b.sh is the same run with a plan.
#
#   scripts/ft-pythia-12b-naive.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-12b --data dolly --seq_len 2048 --save_every 500 --keep_states 1 \
    --strategy ddp --force --ladder off -- "$@"
