#!/usr/bin/env bash
# Fine-tune pythia-1b on Dolly. Needs one GPU of 24 GiB.
#
#   scripts/ft-pythia-1b.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-1b --data dolly -- "$@"
