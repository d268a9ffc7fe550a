#!/usr/bin/env bash
# Fine-tune pythia-6.9b on Dolly on one node. Needs 8 GPUs of 40 GiB, 500 GiB of host memory and 300 GiB of disk.
#
#   scripts/ft-pythia-6.9b.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-6.9b --data dolly --save_every 500 --keep_states 1 -- "$@"
