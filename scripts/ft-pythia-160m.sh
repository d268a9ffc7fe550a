#!/usr/bin/env bash
# Fine-tune pythia-160m on Dolly. Needs one GPU of 12 GiB.
#
#   scripts/ft-pythia-160m.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-160m --data dolly -- "$@"
