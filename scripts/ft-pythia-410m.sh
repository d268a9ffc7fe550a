#!/usr/bin/env bash
# Fine-tune pythia-410m on Dolly. Needs one GPU of 16 GiB.
#
#   scripts/ft-pythia-410m.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-410m --data dolly -- "$@"
