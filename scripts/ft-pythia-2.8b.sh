#!/usr/bin/env bash
# Fine-tune pythia-2.8b on Dolly on one node. Needs 4 GPUs of 40 GiB, and 128 GiB of host memory.
#
#   scripts/ft-pythia-2.8b.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-2.8b --data dolly --save_every 250 --keep_states 1 -- "$@"
